"""The reader: records of a store, every byte of them checked against its commit."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from storage import checksums
from storage import commit as commits
from storage.errors import (
    CacheError,
    CorruptChunkError,
    FormatError,
    IdentityError,
    MissingShardError,
    UnreadableError,
    VersionError,
)
from storage.index import Index, ShardTable
from storage.layout import COMMITS, CRC_BYTES, commit_key, object_key
from storage.location import Location
from storage.manifest import Manifest
from storage.metadata import read_index, read_root
from storage.report import remedy
from storage.schema import Field, Geometry, ShardId
from storage.shards import decode_chunk

if TYPE_CHECKING:
    from storage.presets.base import Preset


class _Chunk(NamedTuple):
    """One record's part of one object."""

    shard: ShardId
    field: Field
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
        fields: names of the fields to read; all if None.

    Raises:
        FileNotFoundError: no store there.
        FormatError, VersionError: damaged metadata, a newer format.
        ValueError: an unknown field.
    """

    def __init__(
        self,
        location: str | os.PathLike[str] | Location,
        fields: Iterable[str] | None = None,
    ) -> None:
        self.location = Location(location)
        self._field_names = None if fields is None else tuple(fields)
        self._cache_id: str | None = None
        self._chunks: dict[ShardId, NDArray[np.int64]] = {}
        self._cache_id = self.manifest.cache_id
        _ = self.index, self._fields

    def __getstate__(self) -> dict[str, Any]:
        kept = ("location", "_field_names", "_cache_id")
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
    def codec(self) -> Preset:
        """The preset that decodes the records (imports PyTorch).

        Raises:
            VersionError: the records are in another version of the preset.
        """
        from storage.presets import get_preset

        preset = get_preset(self.manifest.preset, **self.manifest.parameters)
        if preset.version != self.manifest.preset_version:
            raise VersionError(
                f"{self.location}: records in version {self.manifest.preset_version} of preset"
                f" {preset.name}, this software knows version {preset.version}; read it with the"
                " software that wrote it, or dump it again"
            )
        return preset

    @property
    def field_names(self) -> tuple[str, ...]:
        """Names of the fields that are read."""
        return tuple(field.name for field in next(iter(self._fields.values())))

    def __len__(self) -> int:
        return len(self.index)

    def geometry_of(self, record: int) -> Geometry:
        """Return the geometry of a record."""
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
        committed = self.location.sizes(COMMITS)
        return [shard for shard in self._table.shards if commit_key(shard) not in committed]

    def read(self, record: int) -> dict[str, NDArray[Any]]:
        """Read one record: field name to array of the field's shape; see `read_many`."""
        return self.read_many([record])[0]

    def read_many(self, records: Sequence[int]) -> list[dict[str, NDArray[Any]]]:
        """Read records, all their chunks at once.

        Returns:
            For each record, field name to array of the field's shape and dtype, in memory that
            nobody else has; from an object store it is read-only.

        Raises:
            IndexError: no such record.
            MissingShardError: a record's shard is not committed, or an object is absent.
            CorruptChunkError: bytes do not match the commit.
            FormatError: a commit is damaged or belongs elsewhere.
        """
        chunks = self._fetch(records)
        return [
            {chunk.field.name: self._decode(chunk, raw) for chunk, raw in one} for one in chunks
        ]

    def read_encoded(self, records: Sequence[int]) -> list[dict[str, memoryview]]:
        """Read records as they are stored: each field's chunk, checked but not decoded.

        Returns:
            For each record, field name to chunk, its CRC32C (the last four bytes) included.

        Raises:
            As `read_many`.
        """
        return [{chunk.field.name: raw for chunk, raw in one} for one in self._fetch(records)]

    def _fetch(self, records: Sequence[int]) -> list[list[tuple[_Chunk, memoryview]]]:
        """Return the chunks of each record, in the order of the fields, checked."""
        places = [self.place_of(record) for record in records]
        self._load_commits({shard for shard, _ in places} - self._chunks.keys())
        wanted = [list(self._chunks_of(*place)) for place in places]
        ranges = [
            (object_key(one.shard, one.field), one.start, one.stop)
            for chunks in wanted
            for one in chunks
        ]
        try:
            found = iter(self.location.get_ranges(ranges))
        except UnreadableError as error:
            raise self._unreadable(error, wanted) from error
        return [[(chunk, self._checked(chunk, next(found))) for chunk in one] for one in wanted]

    @cached_property
    def _table(self) -> ShardTable:
        try:
            return ShardTable(self.index, self.manifest.shard_records)
        except ValueError as error:
            raise FormatError(f"{self.location}: {error}") from error

    @cached_property
    def _fields(self) -> dict[str, tuple[Field, ...]]:
        """Bucket name to the fields that are read."""
        stored = self.manifest.fields
        known = [field.name for field in next(iter(stored.values()))]
        names = known if self._field_names is None else self._field_names
        for name in names:
            if name not in known:
                raise ValueError(f"{self.location}: no field {name!r}, only {', '.join(known)}")
        return {
            bucket: tuple(field for field in fields if field.name in names)
            for bucket, fields in stored.items()
        }

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
        if not 0 <= record < len(self.index):
            raise IndexError(f"{self.location}: record {record} of {len(self.index)}")
        return self._table.shard_of(record)

    def _load_commits(self, shards: Iterable[ShardId]) -> None:
        shards = sorted(shards)
        if not shards:
            return
        keys = [commit_key(shard) for shard in shards]
        for shard, raw in zip(shards, self.location.get_many(keys), strict=True):
            if raw is None:
                raise MissingShardError(
                    f"{self.location}: shard {shard} is not committed; run the dump again, which"
                    " writes it"
                )
            commit = commits.parse(raw, shard, self.manifest, str(self.location))
            records = self._table.records_of(shard)
            commits.check_records(commit, self.index, records, str(self.location))
            fields = self._fields[shard.bucket]
            self._chunks[shard] = np.stack([commit.objects[one.name].chunks for one in fields])

    def _chunks_of(self, shard: ShardId, position: int) -> Iterable[_Chunk]:
        table = self._chunks[shard][:, position].tolist()
        for field, (start, length, crc) in zip(self._fields[shard.bucket], table, strict=True):
            yield _Chunk(shard, field, start, start + length, crc)

    def _checked(self, chunk: _Chunk, raw: memoryview | None) -> memoryview:
        if raw is None:
            raise MissingShardError(
                f"{self.location}: shard {chunk.shard}, field {chunk.field.name}: is absent"
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
        """Name the shard and the field of an object that cannot be read."""
        chunk = next(
            one for chunks in wanted for one in chunks
            if object_key(one.shard, one.field) == error.key
        )  # fmt: skip
        way_out = self._remedy if error.lost else "make it readable, and run again"
        return MissingShardError(
            f"{self.location}: shard {chunk.shard}, field {chunk.field.name}: {error.reason}"
            f" ({error.key}); {way_out}"
        )

    def _decode(self, chunk: _Chunk, raw: memoryview) -> NDArray[Any]:
        try:
            return decode_chunk(raw, chunk.field)
        except FormatError as error:
            raise self._corrupt(chunk, f"does not hold a record ({error})") from error

    def _corrupt(self, chunk: _Chunk, what: str) -> CorruptChunkError:
        return CorruptChunkError(
            f"{self.location}: shard {chunk.shard}, field {chunk.field.name}, bytes"
            f" {chunk.start} to {chunk.stop}: the chunk {what}; {self._remedy}",
            store=str(self.location), shard=str(chunk.shard), field=chunk.field.name,
        )  # fmt: skip

    @property
    def _remedy(self) -> str:
        return remedy(str(self.location))
