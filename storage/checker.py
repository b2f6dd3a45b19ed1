"""The check of one shard against its commit: what `verify` does many times, in many processes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from storage import checksums
from storage import commit as commits
from storage.checksums import CRC_BYTES
from storage.commit import Commit, StoredObject
from storage.errors import FormatError, UnreadableError, VersionError
from storage.index import Index, ShardTable
from storage.layout import MAX_METADATA_BYTES, commit_key, object_key, object_keys
from storage.location import Location
from storage.manifest import Manifest
from storage.report import Problem, shard_problem, unreadable_problem
from storage.schema import Array, ShardId
from storage.shards import chunk_table, chunks_at, decode_chunk, table_bytes
from storage.values import wrong_values

# Reading and parsing a commit takes as long as reading and hashing about this many bytes.
_COMMIT_WORK = 1 << 21

Task = tuple[ShardId, Sequence[int | None] | None]
# A commit as it was read: its bytes, why there are none, None if it is absent.
Raw = bytes | UnreadableError | None


@dataclass(kw_only=True)
class ShardResult:
    """What the check of one shard found.

    Attributes:
        problems: what is wrong.
        committed: XXH3-128 by key, as the commit says; empty at level "quick".
        mismatched: XXH3-128 by key that was found instead; its problem is not in `problems` yet,
            since only the commits of all shards tell a damaged object from a swapped one.
        arrays: name of the array by key, of those in `mismatched`.
        num_bytes: bytes compared.
        num_records: records compared, those that the commit has.
    """

    shard: ShardId
    problems: list[Problem] = field(default_factory=list)
    committed: dict[str, str] = field(default_factory=dict)
    mismatched: dict[str, str] = field(default_factory=dict)
    arrays: dict[str, str] = field(default_factory=dict)
    num_bytes: int = 0
    num_records: int = 0

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems and not self.mismatched


class ShardChecker:
    """Checks shards of one store.

    Args:
        location, manifest, index: of the store.
        level: "quick" compares sizes, "full" every byte, "deep" also decodes every record.

    Attributes:
        table: the shards.

    Raises:
        ValueError: the index breaks a rule of the format.
    """

    def __init__(self, location: Location, manifest: Manifest, index: Index, level: str) -> None:
        self._location = location
        self._store = str(location)
        self._manifest = manifest
        self.table = ShardTable(index, manifest.shard_records)
        self._level = level

    def keys_of(self, shard: ShardId) -> list[str]:
        """Return the keys of a shard's objects, in the order of the arrays."""
        return object_keys(self._manifest, shard)

    def work_of(self, shard: ShardId) -> int:
        """Say how much work a shard is, measured in bytes read."""
        if self._level == "quick":
            return _COMMIT_WORK
        record = sum(one.num_bytes for one in self._manifest.arrays[shard.bucket])
        return _COMMIT_WORK + record * len(self.table.records_of(shard))

    def bytes_read(self, shard: ShardId, sizes: Mapping[str, int]) -> int:
        """Say how many bytes are read to check a shard, given the sizes of the store's objects."""
        keys = [] if self._level == "quick" else self.keys_of(shard)
        return sum(sizes.get(key, 0) for key in (commit_key(shard), *keys))

    def check_many(self, tasks: Sequence[Task]) -> list[ShardResult]:
        """Check committed shards, whose commits are read at once.

        Args:
            tasks: each a shard and the sizes of its objects in bytes, in the order of the arrays,
                None for absent ones; the store is asked for them if None is given in their place.
        """
        raws = self._read_commits([shard for shard, _ in tasks])
        return [self._check(*task, raw) for task, raw in zip(tasks, raws, strict=True)]

    def _check(self, shard: ShardId, sizes: Sequence[int | None] | None, raw: Raw) -> ShardResult:
        result = self._look(shard, raw, sizes)
        if result.ok:
            return result
        # A dump or a repair at work may have replaced the shard meanwhile. Damage stays.
        return self._look(shard, self._read_commit(shard), None)

    def _look(self, shard: ShardId, raw: Raw, sizes: Sequence[int | None] | None) -> ShardResult:
        result = ShardResult(shard=shard)
        commit = self._parse(raw, result) if isinstance(raw, bytes) else None
        if isinstance(raw, UnreadableError):
            self._unreadable(result, commit_key(shard), raw)
        if commit is not None:
            self._check_objects(result, commit, sizes)
            if self._level == "deep" and result.ok:
                result.problems.extend(self._check_values(shard, commit))
        if raw is None or not (result.ok or _same(self._read_commit(shard), raw)):
            message = (
                f"{self._store}: shard {shard}: was dropped or replaced during the check; run the"
                " dump again, or check again when it has ended"
            )
            where = commit_key(shard)
            problem = Problem(kind="missing", where=where, message=message, shard=str(shard))
            return ShardResult(shard=shard, problems=[problem])
        return result

    def _read_commits(self, shards: Sequence[ShardId]) -> list[Raw]:
        # A huge object in the place of a commit is not read to its end.
        raws = self._location.try_ranges(
            [(commit_key(shard), 0, MAX_METADATA_BYTES) for shard in shards]
        )
        return [bytes(raw) if isinstance(raw, memoryview) else raw for raw in raws]

    def _read_commit(self, shard: ShardId) -> Raw:
        return self._read_commits([shard])[0]

    def _parse(self, raw: bytes, result: ShardResult) -> Commit | None:
        shard, key = result.shard, commit_key(result.shard)
        result.num_bytes += len(raw)
        try:
            commit = commits.parse(raw, shard, self._manifest, self._store)
            records = self._records_in(shard, commit)
            arrays = self._manifest.arrays[shard.bucket]
            commits.check_exact(raw, commit, self.table.index, records, arrays, self._store)
            result.num_records = len(records)
            return commit
        except VersionError as error:
            problem = Problem(kind="version", where=key, message=str(error), shard=str(shard))
        except FormatError as error:
            problem = Problem(
                kind=self._kind_of_commit(raw, shard), where=key, message=str(error),
                shard=str(shard), spoils=True,
            )  # fmt: skip
        result.problems.append(problem)
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

    def _check_objects(
        self, result: ShardResult, commit: Commit, sizes: Sequence[int | None] | None
    ) -> None:
        arrays = self._manifest.arrays[result.shard.bucket]
        for position, one in enumerate(arrays):
            key, stored = object_key(result.shard, one), commit.objects[one.name]
            if self._level != "quick":
                result.committed[key] = stored.xxh3_128
            try:
                size = self._location.size(key) if sizes is None else sizes[position]
                self._check_object(result, one, key, stored, size)
            except UnreadableError as error:
                self._unreadable(result, key, error, one.name)

    def _check_object(
        self, result: ShardResult, one: Array, key: str, stored: StoredObject, size: int | None
    ) -> None:
        if size is None:
            self._spoilt(result, "missing", one, key, "is absent although its shard is committed")
            return
        if self._level != "quick":
            result.num_bytes += size
            self._check_bytes(result, one, key, stored)
        if size != stored.size:
            kind = "truncated" if size < stored.size else "damaged"
            self._spoilt(result, kind, one, key, f"has {size} bytes instead of {stored.size}")

    def _check_bytes(self, result: ShardResult, one: Array, key: str, stored: StoredObject) -> None:
        """Hash an object, and compare the CRC32C at the end of each chunk with the commit's.

        The writer has computed the CRCs of the very bytes that it hashed and read back, so bytes
        with that hash have them. Level "deep" computes them once more.
        """
        chunks = stored.chunks[np.argsort(stored.chunks[:, :2].sum(axis=1), kind="stable")]
        ends = chunks[:, :2].sum(axis=1).tolist()
        blocks = self._location.read_blocks(key)
        found, tails = checksums.xxh3_128_and_tails(blocks, ends, CRC_BYTES)
        if found != stored.xxh3_128:
            result.mismatched[key] = found
            result.arrays[key] = one.name
        elif [int.from_bytes(tail, "little") for tail in tails] != chunks[:, 2].tolist():
            what = "the CRC32C of a chunk is not the one in the commit"
            self._spoilt(result, "damaged", one, key, what)

    def _spoilt(self, result: ShardResult, kind: str, one: Array, key: str, what: str) -> None:
        result.problems.append(
            shard_problem(kind, self._store, result.shard, what, where=key, array=one.name)
        )

    def _unreadable(
        self, result: ShardResult, key: str, error: UnreadableError, name: str = ""
    ) -> None:
        problem = unreadable_problem(self._store, result.shard, error, where=key, array=name)
        result.problems.append(problem)

    def _records_in(self, shard: ShardId, commit: Commit) -> NDArray[np.int64]:
        records = self.table.records_of(shard)
        return commits.records_in(commit, self.table.index, records, self._manifest.excluded)

    def _check_values(self, shard: ShardId, commit: Commit) -> Iterator[Problem]:
        for one in self._manifest.arrays[shard.bucket]:
            key, stored = object_key(shard, one), commit.objects[one.name]
            for what in self._wrong_in_object(self._records_in(shard, commit), one, key, stored):
                yield shard_problem("invalid", self._store, shard, what, where=key, array=one.name)

    def _wrong_in_object(
        self, records: NDArray[np.int64], one: Array, key: str, stored: StoredObject
    ) -> Iterator[str]:
        index, num_classes = self.table.index, self._manifest.detections["classes"]
        try:
            decoded = self._decode_object(records, one, key, stored)
            for record, data in zip(records.tolist(), decoded, strict=True):
                view = int(index.height[record]), int(index.width[record])
                for field, value in one.split(data):
                    wrong = wrong_values(field, value, *view, num_classes)
                    if wrong:
                        yield f"image {index.image_id[record]}, view {index.view[record]}: {wrong}"
        except FormatError as error:
            yield str(error)
        except UnreadableError as error:
            yield error.reason

    def _decode_object(
        self, records: NDArray[np.int64], one: Array, key: str, stored: StoredObject
    ) -> Iterator[NDArray[np.uint8]]:
        """Decode an object chunk by chunk, as its own table and its commit both say."""
        shard_records = self._manifest.shard_records
        start = stored.size - table_bytes(shard_records)
        raw = self._location.get_ranges([(key, start, stored.size)])[0]
        table = chunk_table(bytes(raw or b""), shard_records)
        positions = self.table.index.slot[records] % shard_records
        if (chunks_at(table, positions) != stored.chunks[:, :2]).any():
            raise FormatError("the commit's chunks are not those of the object's own table")
        for chunk in stored.chunks.tolist():
            yield self._decode_chunk(key, one, *chunk)

    def _decode_chunk(
        self, key: str, one: Array, start: int, length: int, crc: int
    ) -> NDArray[np.uint8]:
        raw = self._location.get_ranges([(key, start, start + length)])[0]
        if raw is None or len(raw) != length or checksums.crc32c(raw[:-CRC_BYTES]) != crc:
            raise FormatError(f"the chunk at {start} does not match the CRC32C of its commit")
        return decode_chunk(raw, one)


def _same(one: Raw, other: Raw) -> bool:
    """Return whether a commit is as it was at another look."""
    reasons = [raw.reason if isinstance(raw, UnreadableError) else raw for raw in (one, other)]
    return reasons[0] == reasons[1]
