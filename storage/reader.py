"""The reader: records of a store, every byte of them checked against its commit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage import checksums
from storage import commit as commits
from storage.checksums import CRC_BYTES
from storage.errors import (
    CacheError,
    CorruptChunkError,
    FormatError,
    IdentityError,
    MissingShardError,
    UnreadableError,
)
from storage.index import Index, ShardTable
from storage.layout import commit_key, object_key
from storage.location import Location
from storage.manifest import Manifest
from storage.metadata import read_index, read_root
from storage.report import remedy
from storage.schema import RECORD, Array, Geometry, ShardId
from storage.shards import decode_chunk

if TYPE_CHECKING:
    from storage.codecs.record import RecordCodec


class _Chunk(NamedTuple):
    """One record's part of one object."""

    shard: ShardId
    array: Array
    start: int
    stop: int
    crc32c: int


class CacheReader:
    """Reads records of a committed store.

    Opening reads the manifest and the index. Commits are read when a record of their shard is
    first asked for, and kept (about 7 kB for a shard of 32). Pickling keeps the location only: a
    worker opens the store itself. Local stores work in forked workers too.

    Args:
        location: local path, `s3://`, `gs://` or `az://` URL.
        signals: names of the signals to read; all if None. What is small comes with every read.

    Raises:
        FileNotFoundError: no store there.
        FormatError, VersionError: damaged metadata, a newer format.
        ValueError: an unknown signal, or a name alone in place of names.
    """

    def __init__(
        self,
        location: str | os.PathLike[str] | Location,
        signals: Iterable[str] | None = None,
    ) -> None:
        self.location = Location(location)
        if isinstance(signals, str):
            raise ValueError(
                f"{self.location}: signals: expected names, such as ({signals!r},), got the text"
                f" {signals!r}"
            )
        self._signal_names = None if signals is None else frozenset(signals)
        self._cache_id: str | None = None
        self._chunks: dict[ShardId, dict[int, NDArray[np.int64]]] = {}
        self._cache_id = self.manifest.cache_id
        _ = self.index, self.arrays

    def __getstate__(self) -> dict[str, Any]:
        kept = ("location", "_signal_names", "_cache_id")
        return {**{name: self.__dict__[name] for name in kept}, "_chunks": {}}

    @cached_property
    def manifest(self) -> Manifest:
        """The store's manifest."""
        manifest = read_root(self.location).manifest
        if self._cache_id not in (None, manifest.cache_id):
            raise IdentityError(f"{self.location}: was replaced by another cache while in use")
        return manifest

    @cached_property
    def index(self) -> Index:
        """The store's index."""
        return read_index(self.location, self.manifest)

    @cached_property
    def codec(self) -> RecordCodec:
        """What decodes the records (imports PyTorch).

        Raises:
            FormatError: a kind or a codec that is not known, or other fields than it has.
            VersionError: the records are in another version of a codec.
        """
        from storage.codecs.record import RecordCodec

        manifest, store = self.manifest, str(self.location)
        codec = RecordCodec.of_manifest(manifest.signals, manifest.detections["rows"], store)
        for name, geometry in manifest.geometries.items():
            if not codec.writes(manifest.arrays[name], geometry):
                raise FormatError(
                    f"{store}: bucket {name} has other fields than its codecs write; read it with"
                    " the software that wrote it, or dump it again"
                )
        return codec

    def __len__(self) -> int:
        return len(self.index)

    def geometry_of(self, record: int) -> Geometry:
        """Return the geometry of a record; IndexError if there is no such."""
        self._require(record)
        return self.manifest.geometries[self.index.bucket_names[self.index.bucket[record]]]

    def record_number(self, image_id: int, view: int) -> int:
        """Return the number of a record.

        Raises:
            KeyError: the store has no such view; names it.
        """
        if 0 <= view < len(self._lookup):
            start, order, sorted_ids = self._lookup[view]
            position = int(np.searchsorted(sorted_ids, image_id))
            if position < len(sorted_ids) and sorted_ids[position] == image_id:
                return start + int(order[position])
        raise KeyError(f"{self.location}: no record of image {image_id}, view {view}")

    def missing(self) -> list[ShardId]:
        """Return the shards that are not committed, in plan order. One listing."""
        return commits.missing(self.location, self.table)

    def holds(self, record: int) -> bool:
        """Return whether a committed shard has a record: not if the dump left its image out.

        Raises:
            As `read_many`, but of objects.
        """
        shard, position = self.place_of(record)
        self._load_commits({shard} - self._chunks.keys())
        return position in self._chunks[shard]

    def read(self, record: int) -> dict[str, NDArray[Any]]:
        """Read one record: field name to its values; see `read_many`."""
        return self.read_many([record])[0]

    def read_many(self, records: Sequence[int]) -> list[dict[str, NDArray[Any]]]:
        """Read records; see `read_each`."""
        return list(self.read_each(records))

    def read_each(self, records: Sequence[int]) -> Iterator[dict[str, NDArray[Any]]]:
        """Read records one after the other; of an object store, all their chunks at once.

        Yields:
            For each record, field name to array of the field's shape and dtype, in memory that
            nobody else has; from an object store it is read-only. Fields of signals that are not
            read are left out.

        Raises:
            IndexError: no such record.
            MissingShardError: a record's shard is not committed, it is left out, or an object is
                absent.
            CorruptChunkError: bytes do not match the commit.
            FormatError: a commit is damaged or belongs elsewhere.
        """
        # A local disk gains nothing by being asked for several, and each takes megabytes.
        at_once = 1 if self.location.is_local else max(1, len(records))
        for start in range(0, len(records), at_once):
            # Not a loop, whose variable would keep a record while the next one is read.
            yield from map(self._fields, self._fetch(records[start : start + at_once]))

    def _fields(self, chunks: list[tuple[_Chunk, memoryview]]) -> dict[str, NDArray[Any]]:
        return {
            field.name: value
            for chunk, raw in chunks
            for field, value in chunk.array.split(self._decode(chunk, raw))
            if self._is_read(field.name)
        }

    def read_encoded(self, records: Sequence[int]) -> list[dict[str, memoryview]]:
        """Read records as they are stored: each array's chunk, checked but not decoded.

        Returns:
            For each record, array name to chunk, its CRC32C (the last four bytes) included.

        Raises:
            As `read_many`.
        """
        return [{chunk.array.name: raw for chunk, raw in one} for one in self._fetch(records)]

    def _fetch(self, records: Sequence[int]) -> list[list[tuple[_Chunk, memoryview]]]:
        """Return the chunks of each record, in the order of the arrays, checked."""
        places = [self.place_of(record) for record in records]
        self._load_commits({shard for shard, _ in places} - self._chunks.keys())
        wanted = [list(self._chunks_of(*place)) for place in places]
        ranges = [
            (object_key(one.shard, one.array), one.start, one.stop)
            for chunks in wanted
            for one in chunks
        ]
        try:
            found = iter(self.location.get_ranges(ranges))
        except UnreadableError as error:
            raise self._unreadable(error, wanted) from error
        return [[(chunk, self._checked(chunk, next(found))) for chunk in one] for one in wanted]

    @cached_property
    def table(self) -> ShardTable:
        """Which records each shard of the plan has."""
        try:
            return ShardTable(self.index, self.manifest.shard_records)
        except ValueError as error:
            raise FormatError(f"{self.location}: {error}") from error

    @cached_property
    def arrays(self) -> dict[str, tuple[Array, ...]]:
        """Bucket name to the arrays that are read."""
        known = self.manifest.signals
        unknown = sorted((self._signal_names or frozenset()) - known.keys())
        if unknown:
            raise ValueError(f"{self.location}: no signal {unknown[0]!r}, only {', '.join(known)}")
        return {
            bucket: tuple(one for one in arrays if one.name == RECORD or self._is_read(one.name))
            for bucket, arrays in self.manifest.arrays.items()
        }

    def _is_read(self, name: str) -> bool:
        """Whether an array or a field is wanted, by its name."""
        signal = name.partition(".")[0]
        if self._signal_names is None or signal not in self.manifest.signals:
            return True
        return signal in self._signal_names

    @cached_property
    def _lookup(self) -> list[tuple[int, NDArray[np.int64], NDArray[np.int64]]]:
        """For each view: its first record, the order of its image ids, and the ids in order."""
        views = np.arange(self.index.num_views)
        starts = np.searchsorted(self.index.view, views, side="left")
        stops = np.searchsorted(self.index.view, views, side="right")
        result = []
        for start, stop in zip(starts.tolist(), stops.tolist(), strict=True):
            ids = self.index.image_id[start:stop]
            order = np.argsort(ids)
            result.append((start, order, ids[order]))
        return result

    def place_of(self, record: int) -> tuple[ShardId, int]:
        self._require(record)
        return self.table.shard_of(record)

    def _require(self, record: int) -> None:
        if not 0 <= record < len(self.index):
            raise IndexError(f"{self.location}: record {record} of {len(self.index)}")

    def _load_commits(self, shards: Iterable[ShardId]) -> None:
        shards = sorted(shards)
        if not shards:
            return
        keys = [commit_key(shard) for shard in shards]
        for shard, raw in zip(shards, self.location.get_many(keys), strict=True):
            if raw is None:
                raise MissingShardError(
                    f"{self.location}: shard {shard} is not committed; "
                    + self._way_out("run the dump again, which writes it")
                )
            commit = commits.parse(raw, shard, self.manifest, str(self.location))
            records = self.table.records_of(shard)
            records = commits.records_in(commit, self.index, records, self.manifest.excluded)
            commits.check_records(commit, self.index, records, str(self.location))
            arrays = self.arrays[shard.bucket]
            tables = np.stack([commit.objects[one.name].chunks for one in arrays], axis=1)
            positions = self.index.slot[records] % self.manifest.shard_records
            self._chunks[shard] = dict(zip(positions.tolist(), tables, strict=True))

    def _chunks_of(self, shard: ShardId, position: int) -> Iterable[_Chunk]:
        table = self._chunks[shard].get(position)
        if table is None:
            raise MissingShardError(
                f"{self.location}: record {position} of shard {shard} is of an image that the dump"
                " left out (DATASET.EXCLUDE)"
            )
        for array, (start, length, crc) in zip(
            self.arrays[shard.bucket], table.tolist(), strict=True
        ):
            yield _Chunk(shard, array, start, start + length, crc)

    def _checked(self, chunk: _Chunk, raw: memoryview | None) -> memoryview:
        if raw is None:
            raise MissingShardError(
                f"{self.location}: shard {chunk.shard}, array {chunk.array.name}: is absent"
                f" although its shard is committed; {self._remedy}"
            )
        if len(raw) != chunk.stop - chunk.start:
            raise self._corrupt(chunk, "is cut short")
        stored = int.from_bytes(raw[-CRC_BYTES:], "little")
        # The stored one too: `read_encoded` hands it out, and whoever decodes will look at it.
        if not stored == checksums.crc32c(raw[:-CRC_BYTES]) == chunk.crc32c:
            raise self._corrupt(chunk, "is damaged (its CRC32C does not match the commit)")
        return raw

    def _unreadable(self, error: UnreadableError, wanted: list[list[_Chunk]]) -> CacheError:
        """Name the shard and the array of an object that cannot be read."""
        chunk = next(
            one for chunks in wanted for one in chunks
            if object_key(one.shard, one.array) == error.key
        )  # fmt: skip
        way_out = self._remedy if error.lost else "make it readable, and run again"
        return MissingShardError(
            f"{self.location}: shard {chunk.shard}, array {chunk.array.name}: {error.reason}"
            f" ({error.key}); {way_out}"
        )

    def _decode(self, chunk: _Chunk, raw: memoryview) -> NDArray[np.uint8]:
        try:
            return decode_chunk(raw, chunk.array)
        except FormatError as error:
            raise self._corrupt(chunk, f"does not hold a record ({error})") from error

    def _corrupt(self, chunk: _Chunk, what: str) -> CorruptChunkError:
        return CorruptChunkError(
            f"{self.location}: shard {chunk.shard}, array {chunk.array.name}, bytes"
            f" {chunk.start} to {chunk.stop}: the chunk {what}; {self._remedy}",
            store=str(self.location), shard=str(chunk.shard), array=chunk.array.name,
        )  # fmt: skip

    @property
    def _remedy(self) -> str:
        return self._way_out(remedy(str(self.location)))

    def _way_out(self, otherwise: str) -> str:
        """What to do about an object that is not as it was, if the cache still is where it was."""
        try:
            cache_id = read_root(self.location).manifest.cache_id
        except FileNotFoundError:
            return "the cache is no longer there: bring it back, and run again"
        except CacheError:
            return otherwise
        if cache_id != self._cache_id:
            return "another cache lies there now: bring back the one it was, and run again"
        return otherwise
