"""The check of one shard against its commit: what `verify` does many times, in many processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage import checksums
from storage import commit as commits
from storage.commit import Commit, StoredObject
from storage.errors import FormatError, VersionError
from storage.index import Index, ShardTable
from storage.layout import CRC_BYTES, commit_key, object_key
from storage.location import Location
from storage.manifest import Manifest
from storage.report import Problem
from storage.schema import Field, ShardId
from storage.shards import chunk_table, decode_chunk

LEVELS = ("quick", "full", "deep")

_INDEX_ENTRY = 16


@dataclass(kw_only=True)
class ShardResult:
    """What the check of one shard found.

    Attributes:
        problems: what is wrong.
        committed: XXH3-128 by key, as the commit says.
        mismatched: XXH3-128 by key that was found instead; its problem is not in `problems` yet,
            since only the commits of all shards tell a damaged object from a swapped one.
        num_bytes: bytes compared.
    """

    shard: ShardId
    problems: list[Problem] = field(default_factory=list)
    committed: dict[str, str] = field(default_factory=dict)
    mismatched: dict[str, str] = field(default_factory=dict)
    num_bytes: int = 0


class ShardChecker:
    """Checks shards of one store.

    Args:
        location, manifest, index: of the store.
        level: "quick" compares sizes, "full" every byte, "deep" also decodes every record.
    """

    def __init__(self, location: Location, manifest: Manifest, index: Index, level: str) -> None:
        self._location = location
        self._manifest = manifest
        self._table = ShardTable(index, manifest.shard_records)
        self._level = level

    def check(self, shard: ShardId, sizes: Mapping[str, int]) -> ShardResult:
        """Check a committed shard.

        Args:
            shard: which one.
            sizes: key to size in bytes of its objects that exist.
        """
        result = ShardResult(shard=shard)
        commit = self._read_commit(result)
        if commit is None:
            return result
        for one in self._manifest.fields[shard.bucket]:
            key, stored = object_key(shard, one), commit.objects[one.name]
            result.committed[key] = stored.xxh3_128
            self._check_object(result, key, stored, sizes.get(key))
        if self._level == "deep" and not result.problems and not result.mismatched:
            for problem in self._check_values(shard, commit):
                result.problems.append(problem)
        return result

    def _read_commit(self, result: ShardResult) -> Commit | None:
        shard = result.shard
        key = commit_key(shard)
        what = f"{self._location}/{key}"
        raw = self._location.get(key)
        if raw is None:  # dropped since the listing
            problem = _problem("missing", shard, key, "the commit vanished during the check")
            result.problems.append(problem)
            return None
        result.num_bytes += len(raw)
        try:
            commit = commits.parse(raw, shard, self._manifest, str(self._location))
            commits.check_records(commit, self._table.index, self._table.records_of(shard), what)
            return commit
        except VersionError as error:
            result.problems.append(_problem("version", shard, key, str(error)))
        except FormatError as error:
            kind = self._kind_of_commit(raw, shard)
            message = f"{error}; repair drops the shard"
            result.problems.append(_problem(kind, shard, key, message, spoils=True))
        return None

    def _kind_of_commit(self, raw: bytes, shard: ShardId) -> str:
        try:
            body = commits.unframe(raw, "")
        except FormatError:
            return "damaged"
        if body.get("cache_id") != self._manifest.cache_id:
            return "foreign"
        stated = (body.get("bucket"), body.get("number"))
        return "swapped" if stated != (shard.bucket, shard.number) else "foreign"

    def _check_object(
        self, result: ShardResult, key: str, stored: StoredObject, size: int | None
    ) -> None:
        shard = result.shard
        if size is None:
            message = "absent although its shard is committed; repair drops the shard"
            result.problems.append(_problem("missing", shard, key, message, spoils=True))
            return
        if self._level != "quick":
            found = checksums.xxh3_128(self._location.read_blocks(key))
            result.num_bytes += size
            if found != stored.xxh3_128:
                result.mismatched[key] = found
        if size != stored.size:
            kind = "truncated" if size < stored.size else "damaged"
            message = f"{size} bytes instead of {stored.size}; repair drops the shard"
            result.problems.append(_problem(kind, shard, key, message, spoils=True))

    def _check_values(self, shard: ShardId, commit: Commit) -> Iterator[Problem]:
        index, records = self._table.index, self._table.records_of(shard)
        for one in self._manifest.fields[shard.bucket]:
            key, stored = object_key(shard, one), commit.objects[one.name]
            try:
                values = self._decode_object(key, one, stored)
                for record, value in zip(records.tolist(), values, strict=True):
                    wrong = self._wrong_values(one, value, record)
                    if wrong:
                        message = f"image {index.image_id[record]}: {wrong}; dump it again"
                        yield _problem("invalid", shard, key, message, spoils=True)
            except FormatError as error:
                yield _problem("invalid", shard, key, f"{error}; dump it again", spoils=True)

    def _decode_object(self, key: str, one: Field, stored: StoredObject) -> Iterator[NDArray[Any]]:
        """Decode an object chunk by chunk, as its own table and its commit both say."""
        size = self._manifest.shard_records * _INDEX_ENTRY + CRC_BYTES
        raw = self._location.get_ranges([(key, stored.size - size, stored.size)])[0]
        table = chunk_table(bytes(raw or b""), self._manifest.shard_records)
        count = len(stored.chunks)
        empty = np.iinfo(np.uint64).max
        if (table[:count] != stored.chunks[:, :2]).any() or (table[count:] != empty).any():
            raise FormatError("the commit's chunks are not those of the object's own table")
        for chunk in stored.chunks.tolist():
            yield self._decode_chunk(key, one, *chunk)

    def _decode_chunk(
        self, key: str, one: Field, start: int, length: int, crc: int
    ) -> NDArray[Any]:
        raw = self._location.get_ranges([(key, start, start + length)])[0]
        if raw is None or len(raw) != length or checksums.crc32c(raw[:-CRC_BYTES]) != crc:
            raise FormatError(f"the chunk at {start} does not match the CRC32C of its commit")
        return decode_chunk(raw, one)

    def _wrong_values(self, one: Field, value: NDArray[Any], record: int) -> str:
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            return f"{one.name} holds NaN or infinity"
        if one.name == "detections":
            index = self._table.index
            num_classes = next(iter(self._manifest.geometries.values())).num_classes
            return wrong_detections(
                value, int(index.height[record]), int(index.width[record]), num_classes
            )
        return ""


def wrong_detections(
    detections: NDArray[np.float32], height: int, width: int, num_classes: int
) -> str:
    """Say what is wrong with a record's detections, or return "".

    Args:
        detections: (D, 6) x1 y1 x2 y2 score class, pixels of the view, XYXY_ABS.
        height, width: of the view in pixels.
        num_classes: K.
    """
    score = detections[:, 4]
    used = detections[score != -1]
    if (np.diff(score) > 0).any():
        return "detections are not sorted by score"
    if ((used[:, 4] < 0) | (used[:, 4] > 1)).any():
        return "a detection's score is outside [0, 1]"
    x1, y1, x2, y2 = used[:, :4].T
    if (x1 < 0).any() or (y1 < 0).any() or (x2 > width).any() or (y2 > height).any():
        return f"a detection lies outside the view of {width} x {height}"
    if (x1 > x2).any() or (y1 > y2).any():
        return "a detection has a negative size"
    label = used[:, 5]
    if ((label < 0) | (label >= num_classes) | (label != np.floor(label))).any():
        return f"a detection's class is not one of {num_classes}"
    return ""


def _problem(kind: str, shard: ShardId, key: str, message: str, *, spoils: bool = False) -> Problem:
    return Problem(kind=kind, where=key, message=message, shard=str(shard), spoils=spoils)
