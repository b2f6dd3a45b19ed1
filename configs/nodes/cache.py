"""Node CACHE."""

from dataclasses import dataclass
from typing import Any, ClassVar

from configs.rules import Text
from storage.urls import URL_SCHEMES

from .base import FieldChecks

# What the cache format allows in one shard.
MAX_SHARD_RECORDS = 2**16
DEFAULT_SHARD_BYTES = 2**27


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Node CACHE: where the teacher cache is and how its records are encoded.

    Raises:
        ValueError: a field is outside its limits, or set although the preset does not use it.
    """

    node: ClassVar[str] = "CACHE"
    DTYPES: ClassVar[tuple[str, ...]] = ("float32", "float16")
    PIXELS: ClassVar[tuple[str, ...]] = ("strict", "tolerate")

    # Folder, or URL of an object store (s3://bucket/prefix).
    location: str = ""
    # Which codec holds each kind of signal: exact, balanced, compact, or a preset that a module of
    # IMPORTS registers.
    preset: str = "balanced"
    # Storage type of preset exact.
    dtype: str = "float32"
    # Class scores kept exactly in one record by the sparse presets; 0: the preset's own rule.
    scores_kept: int = 0
    # Names of the teacher's signals to store, such as features; empty: all. Training refuses a
    # cache without those that it needs.
    signals: tuple[str, ...] = ()
    # Names of the pyramid levels to store, such as p3; empty: all. What belongs to the others takes
    # no part in distillation.
    levels: tuple[str, ...] = ()
    # Records in one shard, the unit of computing, committing and verifying; 0: as many as
    # SHARD_BYTES holds of the largest view that VIEWS allows, in whole teacher batches.
    shard_records: int = 32
    # Size that no object of a shard exceeds before compression, bytes, with SHARD_RECORDS 0.
    shard_bytes: int = DEFAULT_SHARD_BYTES
    # Threads of a rank that write shards, each with a shard in memory. One encodes while another
    # waits for its disk; an object store has use for more.
    writers: int = 2
    # strict: a view whose pixels differ from the cached ones is an error; tolerate: it is logged,
    # with how much they differ, unless that is too much for another version of a library.
    pixels: str = "strict"
    # Bytes of views and records that the data workers of one rank hold ready at most. If a batch of
    # each is more, several make one batch in parts; one image is always allowed.
    prefetch_bytes: int = 1 << 30

    def __post_init__(self) -> None:
        checks = FieldChecks(self)
        checks.place("location", URL_SCHEMES)
        checks.check("preset", Text(needed=True))
        checks.choice("dtype", self.DTYPES)
        checks.integer("scores_kept", at_least=0)
        for name in ("signals", "levels"):
            checks.names(name)
        checks.integer("shard_records", at_least=0, at_most=MAX_SHARD_RECORDS)
        checks.integer("shard_bytes", at_least=1, at_most=2**40)
        checks.integer("writers", at_least=1, at_most=256)
        checks.choice("pixels", self.PIXELS)
        checks.integer("prefetch_bytes", at_least=1, at_most=2**50)
        # An option that is accepted and ignored misleads.
        if self.preset in ("balanced", "compact") and self.dtype != "float32":
            raise checks.refusal("dtype", f"float32 with CACHE.PRESET {self.preset}")
        if self.preset == "exact" and self.scores_kept != 0:
            raise checks.refusal(
                "scores_kept", "0 with CACHE.PRESET exact, which keeps every score"
            )
        if self.shard_records != 0 and self.shard_bytes != DEFAULT_SHARD_BYTES:
            raise checks.refusal(
                "shard_bytes",
                f"{DEFAULT_SHARD_BYTES} (the default) with CACHE.SHARD_RECORDS other than 0",
            )

    @property
    def preset_options(self) -> dict[str, Any]:
        """The preset's options that differ from its own defaults, by name."""
        options = {"dtype": self.dtype, "scores_kept": self.scores_kept}
        return {name: one for name, one in options.items() if one != getattr(CacheConfig, name)}
