"""What the planned records take under a preset: worked out, and set right by a sample of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage import Array, Geometry, Index, Preset, RecordCodec, ShardId, Signal, get_preset
from storage import commit as commits
from storage.checksums import CRC_BYTES
from storage.codecs.presets import PRESETS
from storage.commit import Commit, StoredObject
from storage.layout import object_key, root_json, seal
from storage.manifest import Manifest
from storage.progress import format_bytes
from storage.shards import table_bytes

from .prepare import Prepared

# What a plan compares besides every preset as it is by default.
_VARIANTS: dict[str, tuple[str, dict[str, str]]] = {
    "exact float16": ("exact", {"dtype": "float16"})
}


# Records that a commit is worked out for; the offsets of more have more digits, but not by much.
_COMMITTED = 64


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What compression left of some records.

    Attributes:
        source: whose records they are.
        geometries: of the buckets that they are from.
        records: how many there are of each of those buckets.
        array_bytes: compressed array to the bytes of its chunks, their CRC32Cs included.
    """

    source: str
    geometries: tuple[Geometry, ...]
    records: NDArray[np.int64]
    array_bytes: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class PresetEstimate:
    """The size of the planned records under one preset.

    Attributes:
        array_bytes: array name to the bytes of its objects; exact, but for compressed arrays,
            where it is what they would be without compression: an upper bound.
        compressed_arrays: names of those arrays.
        typical_array_bytes: of the compressed arrays that were sampled, or whose typical size the
            codec knows, that size: an estimate.
        metadata_bytes: commits, index, manifest and what else is no record.
        total_bytes: everything, at most.
        expected_bytes: everything, with the estimates where there are any.
        objects: files, or objects of an object store, metadata and commits included.
        sample: whose records the estimates follow; empty where they are typical ones.
        read_bytes: what training reads of a record, on average, with the estimates.
        read_requests: the ranges of objects that it asks for, one per array, however many records
            are read at once.
    """

    array_bytes: dict[str, int]
    compressed_arrays: list[str]
    typical_array_bytes: dict[str, int]
    metadata_bytes: int
    total_bytes: int
    expected_bytes: int
    objects: int
    sample: str
    read_bytes: float
    read_requests: int

    @property
    def is_exact(self) -> bool:
        """Whether nothing is compressed."""
        return not self.compressed_arrays

    @property
    def about(self) -> str:
        """What is said before a number that the compressed arrays decide; empty if none do."""
        return "" if self.is_exact else "about " if self.typical_array_bytes else "at most "

    def lines(self, title: str, records: int) -> Iterator[str]:
        """The size as text: all arrays, then each."""
        basis = f", as {self.sample}" if self.sample else ""
        yield (
            f"{title}: {self.about}{format_bytes(self.expected_bytes)}, "
            f"{format_bytes(self.expected_bytes / records)} a record, {self.objects:,} objects"
            f"{basis}"
        )
        for array, size in self.array_bytes.items():
            note = ""
            if array in self.typical_array_bytes:
                note = f", estimated; {format_bytes(size)} before compression"
                size = self.typical_array_bytes[array]
            elif array in self.compressed_arrays:
                note = ", before compression"
            yield f"  {array:18} {format_bytes(size):>10}{note}"
        yield f"  {'(metadata)':18} {format_bytes(self.metadata_bytes):>10}"


def candidates(prepared: Prepared) -> dict[str, Preset]:
    """Every preset that a plan compares, by the title it has there; the chosen one as it is set.

    One of the user's that cannot hold what is stored, which nobody chose, is left out.
    """
    chosen, signals = prepared.setup.preset, prepared.setup.stored.signals
    stated = {**{name: (name, {}) for name in sorted(PRESETS)}, **_VARIANTS}
    found = {
        title: preset
        for title, (name, given) in stated.items()
        if (preset := _holding(signals, name, given)) is not None
    }
    return {**found, title_of(chosen): chosen}


def _holding(signals: Iterable[Signal], name: str, given: Mapping[str, str]) -> Preset | None:
    """The preset, if there is one that has a codec for each of some signals."""
    try:
        preset = get_preset(name, **given)
        for signal in signals:
            preset.codec_for(signal)
    except ValueError:
        return None
    return preset


def title_of(chosen: Preset) -> str:
    """What a plan calls the chosen preset."""
    for title, (name, given) in _VARIANTS.items():
        if chosen == get_preset(name, **given):
            return title
    return chosen.name


def sample_of_cache(prepared: Prepared, sizes: Mapping[str, int]) -> Sample | None:
    """What lies in the planned cache already; None where that tells nothing.

    Args:
        prepared: the planned dump.
        sizes: key to size, bytes, of the objects that are there.
    """
    buckets = {name: number for number, name in enumerate(prepared.index.bucket_names)}
    records = np.zeros(len(buckets), dtype=np.int64)
    taken: dict[str, int] = {}
    table = prepared.table
    for shard in table.shards:
        number = buckets[shard.bucket]
        arrays = compressed_arrays(prepared.codec(), prepared.geometries[number])
        keys = {array.name: object_key(shard, array) for array in arrays}
        if not keys or not sizes.keys() >= set(keys.values()):
            continue
        planned = table.records_of(shard)
        records[number] += len(commits.without_excluded(table.index, planned, prepared.excluded))
        for name, key in keys.items():
            chunks = sizes[key] - table_bytes(prepared.shard_records)
            taken[name] = taken.get(name, 0) + chunks
    if not records.any():
        return None
    source = f"the {records.sum():,} records that are there already"
    return Sample(source=source, geometries=prepared.geometries, records=records, array_bytes=taken)


def compressed_arrays(codec: RecordCodec, geometry: Geometry) -> list[Array]:
    """The arrays whose size depends on the teacher."""
    return [array for array in codec.arrays(geometry) if array.compression]


def shards_of_buckets(prepared: Prepared) -> NDArray[np.int64]:
    """The number of shards of every bucket; a bucket's shards have no gaps."""
    index = prepared.index
    last = np.zeros(len(index.bucket_names), dtype=np.int64)
    np.maximum.at(last, index.bucket, index.slot // prepared.shard_records)
    return last + 1


def estimate_preset(
    prepared: Prepared, preset: Preset, shards: NDArray[np.int64], sample: Sample | None
) -> PresetEstimate:
    """Work out the size of a dump.

    Args:
        prepared: the planned dump.
        preset: the codecs for it.
        shards: number of shards of every bucket.
        sample: some of its records in these codecs.
    """
    records = np.bincount(prepared.index.bucket, minlength=len(prepared.geometries))
    tables = shards * table_bytes(prepared.shard_records)
    codec = prepared.codec(preset)
    arrays = [codec.arrays(geometry) for geometry in prepared.geometries]
    # Bytes of a chunk by array and bucket; of compressed arrays the most, then the typical.
    most = {
        array.name: np.array([one[number].num_bytes for one in arrays]) + CRC_BYTES
        for number, array in enumerate(arrays[0])
    }
    compressed = [array.name for array in arrays[0] if array.compression]
    expected = _expected_chunks(codec, prepared.geometries, compressed, sample)
    read = {**most, **expected}.values()
    array_bytes = {name: int((records * size + tables).sum()) for name, size in most.items()}
    typical = {name: int((records * size + tables).sum()) for name, size in expected.items()}
    manifest, metadata = seal(
        prepared.manifest(teacher={}, numerics={}, preset=preset), prepared.index
    )
    metadata_bytes = len(root_json(manifest)) + sum(map(len, metadata.values()))
    for bucket in range(len(arrays)):
        chunks = {name: int(size[bucket]) for name, size in {**most, **expected}.items()}
        of_shard, of_record = _commit_bytes(prepared, manifest, bucket, arrays[bucket], chunks)
        metadata_bytes += round(shards[bucket] * of_shard + records[bucket] * of_record)
    return PresetEstimate(
        array_bytes=array_bytes,
        compressed_arrays=compressed,
        typical_array_bytes=typical,
        metadata_bytes=metadata_bytes,
        total_bytes=sum(array_bytes.values()) + metadata_bytes,
        expected_bytes=sum({**array_bytes, **typical}.values()) + metadata_bytes,
        # Metadata: the root, its digest and all that the two vouch for. Data: each shard's arrays,
        # and its commit.
        objects=2 + len(metadata) + int(shards.sum()) * (len(arrays[0]) + 1),
        sample=sample.source if sample else "",
        read_bytes=float((records * sum(read)).sum() / records.sum()),
        read_requests=len(read),
    )


def _expected_chunks(
    codec: RecordCodec, geometries: Sequence[Geometry], compressed: list[str], sample: Sample | None
) -> dict[str, NDArray[np.float64]]:
    """Bytes of a chunk of each compressed array, by bucket, where anything is known of them.

    What is typical knows how the size of the views matters; a sample knows the teacher.
    """
    found = {}
    for name in compressed:
        chunks, is_typical = _likely_chunks(codec, geometries, name)
        if sample is not None:
            likely, _ = _likely_chunks(codec, sample.geometries, name)
            chunks *= sample.array_bytes[name] / (likely * sample.records).sum()
        elif not is_typical:
            continue
        found[name] = chunks
    return found


def _likely_chunks(
    codec: RecordCodec, geometries: Sequence[Geometry], name: str
) -> tuple[NDArray[np.float64], bool]:
    """Bytes of a chunk of an array, by bucket, and whether they are typical; else the most."""
    known = [codec.typical_bytes(geometry) for geometry in geometries]
    is_typical = all(name in one for one in known)
    if not is_typical:
        known = [
            {array.name: array.num_bytes for array in codec.arrays(geometry)}
            for geometry in geometries
        ]
    return np.array([one[name] + CRC_BYTES for one in known], dtype=np.float64), is_typical


def _commit_bytes(
    prepared: Prepared,
    manifest: Manifest,
    bucket: int,
    arrays: Sequence[Array],
    chunks: Mapping[str, int],
) -> tuple[float, float]:
    """Bytes of the commit of a shard without records, and of what each record adds to it."""
    rows = np.flatnonzero(prepared.index.bucket == bucket)
    rows = rows[: min(prepared.shard_records, _COMMITTED)]
    shard = ShardId(prepared.index.bucket_names[bucket], 0)
    lengths = [
        len(commits.dump(_commit(prepared.index, manifest, shard, some, chunks), arrays))
        for some in (rows[:0], rows)
    ]
    return lengths[0], (lengths[1] - lengths[0]) / len(rows)


def _commit(
    index: Index,
    manifest: Manifest,
    shard: ShardId,
    rows: NDArray[np.int64],
    chunks: Mapping[str, int],
) -> Commit:
    """A commit as long as a real one."""
    objects = {}
    for name, size in chunks.items():
        table = np.full((len(rows), 3), np.iinfo(np.uint32).max, dtype=np.int64)
        table[:, 0] = np.arange(len(rows)) * size
        table[:, 1] = size
        objects[name] = StoredObject(size * len(rows), "0" * 32, table)
    return Commit(manifest.cache_id, shard, commits.record_entries(index, rows), objects)
