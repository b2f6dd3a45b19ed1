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
from storage import CacheError, Geometry, Index, Preset, get_preset, plan_to_json, preset_names
from storage.layout import seal
from storage.schema import Field, common_fields

from .existing import Existing, look_at
from .prepare import Prepared

# zarr's sharding: a CRC32C behind each chunk and behind the table, offset and length of a chunk.
_CRC_BYTES = 4
_TABLE_ENTRY_BYTES = 16


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How fast records are written, and who says so."""

    records_per_sec: float
    source: str


@dataclass(frozen=True, kw_only=True)
class PresetEstimate:
    """The size of the planned records under one preset.

    Attributes:
        field_bytes: field name to the bytes of its objects; exact, but for compressed fields,
            where it is what they would be without compression: an upper bound.
        compressed_fields: names of those fields.
        typical_field_bytes: of the compressed fields whose typical size the preset knows, that
            size: an estimate.
        total_bytes: all fields, at most.
        expected_bytes: all fields, with the estimates where there are any.
        objects: files, or objects of an object store, metadata and commits included.
    """

    field_bytes: dict[str, int]
    compressed_fields: list[str]
    typical_field_bytes: dict[str, int]
    total_bytes: int
    expected_bytes: int
    objects: int

    @property
    def is_exact(self) -> bool:
        """Whether nothing is compressed."""
        return not self.compressed_fields

    def lines(self, title: str, records: int) -> Iterator[str]:
        """The size as text: all fields, then each."""
        about = "" if self.is_exact else "about " if self.typical_field_bytes else "at most "
        yield (
            f"{title}: {about}{format_bytes(self.expected_bytes)}, "
            f"{format_bytes(self.expected_bytes / records)} a record, {self.objects:,} objects"
        )
        for field, size in self.field_bytes.items():
            note = ""
            if field in self.typical_field_bytes:
                note = f", estimated; {format_bytes(size)} before compression"
                size = self.typical_field_bytes[field]
            elif field in self.compressed_fields:
                note = ", before compression"
            yield f"  {field:18} {format_bytes(size):>10}{note}"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a dump would write; `str` gives a table, `to_json` the numbers.

    Attributes:
        location, preset: of the config.
        images, views, records, buckets, shards: counts.
        shard_records: records of a full shard.
        presets: the size under every preset.
        done_records: records that the cache at the location holds already.
        free_bytes: space left where the cache would lie; None for an object store.
        rate: records a second; None where it is not known.
        rate_source: where the rate comes from.
        seconds: time for the records that are not done, at that rate.
        warnings: what would go wrong.
    """

    location: str
    preset: str
    images: int
    views: int
    records: int
    buckets: int
    shards: int
    shard_records: int
    presets: dict[str, PresetEstimate]
    done_records: int
    free_bytes: int | None
    rate: float | None
    rate_source: str
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
            f"{self.buckets:,} buckets and {self.shards:,} shards of {self.shard_records}, for "
            f"{self.location}"
        )
        for name, preset in self.presets.items():
            chosen = " (CACHE.PRESET)" if name == self.preset else ""
            yield from preset.lines(f"{name}{chosen}", self.records)
        if self.done_records:
            yield f"done already: {self.done_records:,} records"
        if self.free_bytes is not None:
            yield f"free at the location: {format_bytes(self.free_bytes)}"
        if self.rate is not None and self.seconds is not None:
            time = timedelta(seconds=round(self.seconds))
            yield f"time: {time} at {self.rate:.1f} records/s ({self.rate_source})"
        yield from (f"warning: {text}" for text in self.warnings)


def estimate(prepared: Prepared, *, rate: Rate | None = None) -> Estimate:
    """Work out what a dump would write; writes nothing, and opens neither images nor weights.

    What lies at CACHE.LOCATION already is taken into account, unless it is an object store:
    planning needs no network.

    Args:
        prepared: the planned dump.
        rate: of all ranks together; without it, that of the cache's own log.
    """
    index = prepared.index
    shards = _shards_of_buckets(index, prepared.shard_records)
    presets = {name: _estimate_preset(prepared, name, shards) for name in preset_names()}
    existing, warnings = _look(prepared)
    done, present = (existing.status.done_records, existing.num_bytes) if existing else (0, 0)
    if rate is None and existing and existing.status.rate:
        rate = Rate(records_per_sec=existing.status.rate, source="log of this cache")
    chosen = presets[prepared.settings.cache.preset]
    location = prepared.settings.cache.location
    free = _free_bytes(location)
    needed = chosen.expected_bytes - present
    if free is not None and needed > free:
        warnings.append(
            f"preset {prepared.preset.name} needs {format_bytes(needed)}, but only "
            f"{format_bytes(free)} are free at {location}"
        )
    return Estimate(
        location=location,
        preset=prepared.preset.name,
        images=len(prepared.images),
        views=index.num_views,
        records=len(index),
        buckets=len(index.bucket_names),
        shards=int(shards.sum()),
        shard_records=prepared.shard_records,
        presets=presets,
        done_records=done,
        free_bytes=free,
        rate=rate.records_per_sec if rate else None,
        rate_source=rate.source if rate else "",
        seconds=(len(index) - done) / rate.records_per_sec if rate else None,
        warnings=warnings,
    )


def _look(prepared: Prepared) -> tuple[Existing | None, list[str]]:
    """The planned cache where it exists already; else why what lies there is not it."""
    location = prepared.settings.cache.location
    if "://" in location:
        return None, []
    try:
        existing = look_at(prepared)
    except CacheError as error:
        return None, [str(error)]
    if existing is None or not existing.begun:  # what is not begun, a dump begins again
        return None, []
    if existing.differences:
        other = "; ".join(existing.differences)
        return None, [f"{location} is another cache than the one asked for: {other}"]
    if existing.status.views > prepared.index.num_views:
        remedy = f"python -m storage drop-views {location} --keep {prepared.index.num_views}"
        views = existing.status.views
        return None, [f"{location} holds {views} views, more than the plan; see: {remedy}"]
    return existing, []


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
    table_bytes = prepared.shard_records * _TABLE_ENTRY_BYTES + _CRC_BYTES
    sizes: dict[str, int] = {}
    typical: dict[str, int] = {}
    compressed: set[str] = set()
    fields: list[Field] = []
    for bucket, geometry in enumerate(prepared.geometries):
        fields = _fields_of(preset, geometry, prepared.teacher_cfg.TEST.DETECTIONS_PER_IMAGE)
        known = preset.typical_bytes(geometry)
        tables = int(shards[bucket]) * table_bytes
        for field in fields:
            chunks = int(records[bucket]) * (field.num_bytes + _CRC_BYTES)
            sizes[field.name] = sizes.get(field.name, 0) + chunks + tables
            if field.compression:
                compressed.add(field.name)
            if field.name in known:
                chunks = int(records[bucket]) * (known[field.name] + _CRC_BYTES)
                typical[field.name] = typical.get(field.name, 0) + chunks + tables
    # Metadata: the root, its digest and all that the two vouch for. Data: each shard's fields,
    # and its commit.
    _, metadata = seal(prepared.manifest(teacher={}, numerics={}, preset=preset), index)
    return PresetEstimate(
        field_bytes=sizes,
        compressed_fields=[name for name in sizes if name in compressed],
        typical_field_bytes=typical,
        total_bytes=sum(sizes.values()),
        expected_bytes=sum({**sizes, **typical}.values()),
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
