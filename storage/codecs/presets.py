"""The presets: named tables from the kind of a signal to the codec that holds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from storage.codecs.base import Codec, check_kind
from storage.codecs.dense import Dense, DenseScores
from storage.codecs.predicted_deltas import PredictedDeltas
from storage.codecs.predicted_maps import PredictedMaps
from storage.codecs.sparse_scores import PackedScores, SparseScores
from storage.codecs.stepped_maps import SteppedMaps
from storage.signals import KINDS, Signal

Table = Mapping[str, Codec]

CODECS: dict[str, type[Codec]] = {
    codec.name: codec
    for codec in (
        Dense, DenseScores, PackedScores, PredictedDeltas, PredictedMaps, SparseScores, SteppedMaps
    )
}  # fmt: skip


def _exact(dtype: str = "float32") -> Table:
    """Everything as computed, for parity tests and small sets."""
    dense = Dense(dtype=dtype)
    scores = DenseScores(dtype=dtype)
    return {"maps": dense, "scores": scores, "deltas": dense, "boxes": dense, "rows": dense}


def _balanced(scores_kept: int = 0) -> Table:
    """8-bit features, sparse class scores, float16 deltas."""
    return {
        "maps": SteppedMaps(),
        "scores": SparseScores(kept=scores_kept),
        "deltas": Dense(dtype="float16"),
        **_FEW_ROWS,
    }


def _compact(scores_kept: int = 0) -> Table:
    """Entropy-coded features and deltas, fewer and shorter scores."""
    return {
        "maps": PredictedMaps(),
        "scores": PackedScores(kept=scores_kept),
        "deltas": PredictedDeltas(),
        **_FEW_ROWS,
    }


# float16 cannot tell two pixels from each other beyond 2048, and boxes are few.
_FEW_ROWS = {"boxes": Dense(), "rows": Dense(dtype="float16")}

PRESETS: dict[str, Callable[..., Table]] = {
    "exact": _exact,
    "balanced": _balanced,
    "compact": _compact,
}


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A preset with its options set."""

    name: str
    table: Table

    def codec_for(self, signal: Signal) -> Codec:
        """Return the codec of a signal.

        Raises:
            ValueError: the preset has none for its kind, or one that cannot hold it.
        """
        codec = self.table.get(signal.kind)
        if codec is None:
            raise ValueError(
                f"preset {self.name}: no codec for signal {signal.name} of the kind"
                f" {signal.kind}, only for {', '.join(self.table)}"
            )
        try:
            check_kind(codec, signal)
        except ValueError as error:
            raise ValueError(f"preset {self.name}: signal {signal.name}: {error}") from None
        return codec


def get_preset(name: str, **options: Any) -> Preset:
    """Make a preset from its name and options, as a config states them.

    Raises:
        ValueError: no such preset, or an option that it does not take, with what there is; or it
            names a codec that is not registered.
    """
    if name not in PRESETS:
        raise ValueError(f"CACHE.PRESET {name!r}: expected one of {', '.join(sorted(PRESETS))}")
    try:
        preset = Preset(name=name, table=PRESETS[name](**options))
    except TypeError as error:
        raise ValueError(f"preset {name}: {error}") from error
    _check_registered(preset)
    return preset


def _check_registered(preset: Preset) -> None:
    """Refuse a preset whose records could be written, but not be read."""
    if not isinstance(preset.table, Mapping):
        what = type(preset.table).__name__
        raise ValueError(f"preset {preset.name}: expected a dict from kinds to codecs, got {what}")
    for kind, codec in preset.table.items():
        if not isinstance(codec, Codec):
            raise ValueError(f"preset {preset.name}: {kind}: expected a codec, got {codec!r}")
        known = CODECS.get(getattr(codec, "name", ""))
        if known is not type(codec):
            raise ValueError(
                f"preset {preset.name}: codec {_place(type(codec))} is not registered, and nobody"
                " could read its records; put @register_codec above it"
            )


def get_codec(identity: Mapping[str, Any]) -> Codec:
    """Make a codec from what a manifest says of it.

    Raises:
        ValueError: no such codec, or a parameter that it does not take.
    """
    name, parameters = identity["name"], identity["parameters"]
    if name not in CODECS:
        raise ValueError(
            f"codec {name!r}: expected one of {', '.join(sorted(CODECS))}; one of your own is known"
            " once the module that registers it is imported (IMPORTS)"
        )
    try:
        return CODECS[name](**parameters)
    except TypeError as error:
        raise ValueError(f"codec {name}: {error}") from error


def register_codec(codec: type[Codec]) -> type[Codec]:
    """Make a codec known by its name; for use as a decorator.

    Raises:
        ValueError: another has the name, or it is no codec or lacks its name or kinds.
    """
    label = f"codec {_place(codec)}"
    if not issubclass(codec, Codec):
        raise ValueError(f"{label}: expected a class that derives from storage.Codec")
    name, kinds = getattr(codec, "name", None), getattr(codec, "kinds", None)
    if not isinstance(name, str):
        raise ValueError(f"{label}: expected its name in `name`, got {name!r}")
    if not isinstance(kinds, tuple) or not kinds or not KINDS.keys() >= set(kinds):
        raise ValueError(
            f"{label}: expected in `kinds` a tuple of kinds that it holds, of {', '.join(KINDS)};"
            f" got {kinds!r}"
        )
    _add(CODECS, codec.name, codec, "codec")
    return codec


def register_preset(name: str, table: Callable[..., Table]) -> None:
    """Make a preset known.

    Args:
        name: what `CACHE.PRESET` calls it.
        table: gives its table; its keyword arguments are the preset's options, those of
            `CACHE.DTYPE` (`dtype`) and `CACHE.SCORES_KEPT` (`scores_kept`) alone.

    Raises:
        ValueError: another has the name.
    """
    _add(PRESETS, name, table, "preset")


def _add(known: dict[str, Any], name: str, new: Any, what: str) -> None:
    old = known.setdefault(name, new)
    if old is not new:
        raise ValueError(
            f"{what} {name!r} is registered twice: {_place(old)} and {_place(new)}; give one of"
            " them another name"
        )


def _place(code: Any) -> str:
    return f"{code.__module__}.{code.__qualname__}"
