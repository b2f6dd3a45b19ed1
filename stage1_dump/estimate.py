"""What a dump would write: records, shards, objects, bytes and time, worked out from the plan."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np

from dataset.progress import format_bytes
from detectors import load_model, teacher_fingerprint
from storage import Geometry, Index, Preset, get_preset, plan_to_json, preset_names
from storage.layout import seal
from storage.schema import Field, common_fields

from .prepare import Prepared

# zarr's sharding: a CRC32C behind each chunk and behind the table, offset and length of a chunk.
_CRC_BYTES = 4
_TABLE_ENTRY_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class PresetEstimate:
    """The size of the planned records under one preset.

    Attributes:
        field_bytes: field name to the bytes of its objects; those of compressed fields are what
            they would be without compression.
        compressed_fields: names of the fields that will be smaller than that.
        total_bytes: all fields.
        objects: files, or objects of an object store, metadata and commits included.
    """

    field_bytes: dict[str, int]
    compressed_fields: list[str]
    total_bytes: int
    objects: int


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a dump would write; `str` gives a table, `to_json` the numbers.

    Attributes:
        location, preset: of the config.
        images, views, records, buckets, shards: counts.
        presets: the size under every preset.
        free_bytes: space left where the cache would lie; None for an object store.
        seconds: time at the given rate; None without one.
        warnings: what would go wrong.
    """

    location: str
    preset: str
    images: int
    views: int
    records: int
    buckets: int
    shards: int
    presets: dict[str, PresetEstimate]
    free_bytes: int | None
    seconds: float | None
    warnings: list[str]

    def to_json(self) -> str:
        """The estimate as one JSON object."""
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield (
            f"{self.images:,} images x {self.views} views = {self.records:,} records in "
            f"{self.buckets:,} buckets and {self.shards:,} shards, for {self.location}"
        )
        for name, preset in self.presets.items():
            chosen = " (CACHE.PRESET)" if name == self.preset else ""
            yield (
                f"{name}{chosen}: {format_bytes(preset.total_bytes)}, "
                f"{format_bytes(preset.total_bytes / self.records)} a record, "
                f"{preset.objects:,} objects"
            )
            for field, size in preset.field_bytes.items():
                note = ", before compression" if field in preset.compressed_fields else ""
                yield f"  {field:16} {format_bytes(size):>10}{note}"
        if self.free_bytes is not None:
            yield f"free at the location: {format_bytes(self.free_bytes)}"
        if self.seconds is not None:
            yield f"time at that rate: {timedelta(seconds=round(self.seconds))}"
        yield from (f"warning: {text}" for text in self.warnings)


def estimate(prepared: Prepared, *, rate: float | None = None) -> Estimate:
    """Work out what a dump would write; writes nothing, and opens neither images nor weights.

    Args:
        prepared: the planned dump.
        rate: records a second, of all ranks together.
    """
    config, index = prepared.settings.cache, prepared.index
    shards = _shards_of_buckets(index, config.shard_records)
    presets = {name: _estimate_preset(prepared, name, shards) for name in preset_names()}
    total = presets[config.preset].total_bytes
    free = _free_bytes(config.location)
    warnings = []
    if free is not None and total > free:
        warnings.append(
            f"preset {config.preset} needs {format_bytes(total)}, but only {format_bytes(free)} "
            f"are free at {config.location}"
        )
    return Estimate(
        location=config.location,
        preset=config.preset,
        images=len(prepared.images),
        views=index.num_views,
        records=len(index),
        buckets=len(index.bucket_names),
        shards=int(shards.sum()),
        presets=presets,
        free_bytes=free,
        seconds=len(index) / rate if rate else None,
        warnings=warnings,
    )


def plan_text(prepared: Prepared) -> str:
    """The plan as JSON for `python -m storage verify --expect`.

    It states what the config decides. Left out is what only a dump knows: the numerics of its
    machine, and the digest of the teacher where its weights are not at hand.
    """
    cfg = prepared.teacher_cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    has_weights = os.path.exists(cfg.MODEL.WEIGHTS)
    teacher = teacher_fingerprint(load_model(cfg), cfg) if has_weights else {}
    plan = plan_to_json(prepared.manifest(teacher=teacher, numerics={}), prepared.index)
    unknown = ["numerics"] if has_weights else ["numerics", "teacher"]
    stated = {name: value for name, value in plan["identity"].items() if name not in unknown}
    # The id covers the whole identity, so it is not known either.
    return json.dumps({**plan, "identity": stated, "cache_id": ""}, indent=1) + "\n"


def _estimate_preset(prepared: Prepared, name: str, shards: np.ndarray) -> PresetEstimate:
    """Args: the dump, the preset's name, and the number of shards of every bucket."""
    config, index = prepared.settings.cache, prepared.index
    preset = prepared.preset if name == config.preset else get_preset(name)
    records = np.bincount(index.bucket)
    table_bytes = config.shard_records * _TABLE_ENTRY_BYTES + _CRC_BYTES
    sizes: dict[str, int] = {}
    compressed: list[str] = []
    fields: list[Field] = []
    for bucket, geometry in enumerate(prepared.geometries):
        fields = _fields_of(preset, geometry, prepared.teacher_cfg.TEST.DETECTIONS_PER_IMAGE)
        for field in fields:
            chunks = int(records[bucket]) * (field.num_bytes + _CRC_BYTES)
            size = chunks + int(shards[bucket]) * table_bytes
            sizes[field.name] = sizes.get(field.name, 0) + size
            if field.compression and field.name not in compressed:
                compressed.append(field.name)
    # Metadata: the root, its digest and all that the two vouch for. Data: each shard's fields,
    # and its commit.
    _, metadata = seal(prepared.manifest(teacher={}, numerics={}, preset=preset), index)
    return PresetEstimate(
        field_bytes=sizes,
        compressed_fields=compressed,
        total_bytes=sum(sizes.values()),
        objects=2 + len(metadata) + int(shards.sum()) * (len(fields) + 1),
    )


def _fields_of(preset: Preset, geometry: Geometry, num_detections: int) -> list[Field]:
    return [*preset.fields(geometry), *common_fields(num_detections)]


def _shards_of_buckets(index: Index, shard_records: int) -> np.ndarray:
    """The number of shards of every bucket; a bucket's shards have no gaps."""
    last = np.zeros(len(index.bucket_names), dtype=np.int64)
    np.maximum.at(last, index.bucket, index.slot // shard_records)
    return last + 1


def _free_bytes(location: str) -> int | None:
    """Free space on the disk that a local location lies or would lie on."""
    if "://" in location:
        return None
    path = Path(location).absolute()
    while not path.exists():
        path = path.parent
    return shutil.disk_usage(path).free
