"""Copying a cache from one place to another, every byte proven on the way.

The target gets its metadata first, in the safe order, then shard after shard, the commit last: it
is a valid store, which lacks shards, until it is whole. A shard whose commit is the source's, and
whose objects have the sizes that it states, was proven when it came and is skipped; so a second run
does what the first one left.

Claims stay behind, as they are about the source's dump. Notes under `log/` come along: training
reads the annotations' digest in one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from threading import Event
from typing import Any

from storage import checksums
from storage import commit as commits
from storage.commit import Commit, StoredObject
from storage.errors import CacheError, FormatError, StoreFullError, UnreadableError
from storage.exclusive import claimed_metadata, refuse_work_in_progress
from storage.index import Index, ShardTable
from storage.layout import (
    CLAIMS,
    DIGEST_KEY,
    LOG,
    MAX_METADATA_BYTES,
    MAX_NOTE_BYTES,
    NOTE,
    commit_key,
    object_key,
    object_keys,
    root_json,
    seal,
)
from storage.location import PARTIAL_SUFFIX, Location
from storage.manifest import Manifest
from storage.metadata import publish, read_index, read_root, refuse_inside_another
from storage.progress import Progress, format_bytes
from storage.report import Problem, shard_problem, unreadable_problem, written_again
from storage.schema import Array, ShardId

# Shards under way. Each holds a block of a local object, or up to four of a remote one, 32 MiB.
TRANSFERS = 8


@dataclass(frozen=True, kw_only=True)
class Copied:
    """What a copy did.

    Attributes:
        source, target: the two places.
        shards: that the plan has.
        committed: of them at the source.
        present: of those, intact at the target before.
        copied: put there now.
        num_bytes: of their objects.
        problems: what keeps the others from being copied.
    """

    source: str
    target: str
    shards: int
    committed: int
    present: int
    copied: int
    num_bytes: int
    problems: tuple[Problem, ...]

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return asdict(self)

    def lines(self) -> list[str]:
        """Return one line per problem, and what became of the rest."""
        lines = [*map(str, self.problems)]
        if self.committed < self.shards:
            lines.append(
                f"{self.source}: {self.shards - self.committed} of {self.shards} shards are not"
                " dumped yet; run the dump, then copy again"
            )
        failed = self.committed - self.present - self.copied
        lines.append(
            f"{self.target}: {self.copied} shards copied ({format_bytes(self.num_bytes)}),"
            f" {self.present} were there"
            + (f", {failed} could not be copied; mend the source, then copy again" * bool(failed))
        )
        return lines


def copy_cache(
    source: str | os.PathLike[str] | Location,
    target: str | os.PathLike[str] | Location,
    transfers: int = TRANSFERS,
    progress: bool = False,
) -> Copied:
    """Copy what is committed of a cache, or the rest of it after an interruption.

    Args:
        source: location of the cache.
        target: of the copy: empty, or an unfinished copy of this cache.
        transfers: shards under way at once.
        progress: show it on stderr.

    Raises:
        FileNotFoundError: there is no cache.
        FormatError, VersionError: its metadata is damaged, or of another format.
        CacheError: something else lies at the target, or a dump is at work there.
        StoreFullError: the target has too little space.
    """
    source, target = Location(source), Location(target)
    _refuse_overlap(source, target)
    manifest, index = _read_source(source)
    _old_root(target, manifest)  # refused before anything is claimed
    with claimed_metadata(target):
        refuse_work_in_progress(target)
        old_sha256 = _old_root(target, manifest)
        job = _Job(source, target, manifest, index)
        job.require_space()
        publish(target, manifest, index, old_sha256)
        _copy_notes(source, target)
        return job.run(transfers, progress)


def _refuse_overlap(source: Location, target: Location) -> None:
    places = [
        f"{os.path.realpath(one.name) if one.is_local else one.name.rstrip('/')}/"
        for one in (source, target)
    ]
    if places[0].startswith(places[1]) or places[1].startswith(places[0]):
        raise CacheError(
            f"{target}: lies in the same place as {source}; choose another one for the copy"
        )


def _read_source(source: Location) -> tuple[Manifest, Index]:
    root = read_root(source)
    if root.growing:
        raise CacheError(
            f"{source}: views are being added or dropped; wait, or run that again, then copy"
        )
    index = read_index(source, root.manifest)
    # All metadata follows from the two, and so is written anew instead of read.
    if checksums.sha256(root_json(seal(root.manifest, index)[0])) != root.sha256:
        raise FormatError(
            f"{source}: its metadata is not what the format asks for; {written_again('it')}"
        )
    return root.manifest, index


def _old_root(target: Location, manifest: Manifest) -> str | None:
    """Return the digest of the root of an unfinished copy; None where nothing is.

    Raises:
        CacheError: something else is there, or another store is around it.
    """
    choose = "choose an empty location, or remove what is there"
    try:
        root = read_root(target)
    except FileNotFoundError:
        begun, keys = {DIGEST_KEY, *manifest.digests}, target.sizes()
        if not keys:
            refuse_inside_another(target)
        for key in keys:
            is_ours = key in begun or key.endswith(PARTIAL_SUFFIX)
            if not is_ours and key.partition("/")[0] not in (CLAIMS, LOG):
                raise CacheError(f"{target}: {key!r} lies there; {choose}") from None
        return None
    except FormatError as error:
        raise CacheError(
            f"{target}: holds no copy that can be gone on with; remove it and copy again, or choose"
            f" an empty location ({error})"
        ) from None
    found = root.manifest
    if (found.cache_id, found.index_sha256) != (manifest.cache_id, manifest.index_sha256):
        raise CacheError(f"{target}: holds another cache, or other views of this one; {choose}")
    if back := set(found.excluded) - set(manifest.excluded):
        raise CacheError(
            f"{target}: leaves out {len(back)} images that the source has, the first has the id"
            f" {min(back)}: it was finished with DATASET.EXCLUDE; {choose}"
        )
    return root.sha256


def _copy_notes(source: Location, target: Location) -> None:
    keys = [key for key in source.listing(LOG).sizes if NOTE.fullmatch(key)]
    raws = source.try_ranges([(key, 0, MAX_NOTE_BYTES) for key in keys])
    notes = zip(keys, raws, strict=True)
    target.put_many({key: bytes(raw) for key, raw in notes if isinstance(raw, memoryview)})


class _StoppedError(Exception):
    """Another transfer has failed, or somebody pressed Ctrl-C."""


class _WrongBytesError(Exception):
    """An object of the source is not what its commit says."""


class _Job:
    """The shards of one copy; the claim on the target's metadata is held all the while."""

    def __init__(
        self, source: Location, target: Location, manifest: Manifest, index: Index
    ) -> None:
        self._source, self._target, self._manifest = source, target, manifest
        self._table = ShardTable(index, manifest.shard_records)
        self._sizes, self._there = source.sizes(), target.sizes()
        self._shards = [one for one in self._table.shards if commit_key(one) in self._sizes]
        self._stopped = Event()

    def require_space(self) -> None:
        """Refuse to begin what would not fit."""
        left = sum(self._bytes_of(one) for one in self._shards if not self._looks_copied(one))
        left -= sum(size for key, size in self._there.items() if key.endswith(PARTIAL_SUFFIX))
        free = self._target.free_bytes()
        if free is not None and free < left:
            raise StoreFullError(
                f"{self._target}: {format_bytes(left)} are to be copied, and {format_bytes(free)}"
                " are free; free some, or choose another location"
            )

    def run(self, transfers: int, shown: bool) -> Copied:
        """Copy the shards that are not there."""
        # Nobody else writes here: these are of a copy that was killed.
        left = [key for key in self._there if key.endswith(PARTIAL_SUFFIX)]
        self._target.delete_many(left)
        total = sum(map(self._bytes_of, self._shards))
        start = sum(self._bytes_of(one) for one in self._shards if self._looks_copied(one))
        with Progress("copy", total=total, unit="B", start=start, shown=shown) as self._bar:
            found = self._transfer_all(transfers)
        numbers = [one for one in found if isinstance(one, int)]
        return Copied(
            source=str(self._source),
            target=str(self._target),
            shards=len(self._table),
            committed=len(self._shards),
            present=found.count(None),
            copied=len(numbers),
            num_bytes=sum(numbers),
            problems=tuple(one for one in found if isinstance(one, Problem)),
        )

    def _transfer_all(self, transfers: int) -> list[int | Problem | None]:
        with ThreadPoolExecutor(transfers) as pool:
            try:  # a signal may come amid the submissions too
                futures = [pool.submit(self._transfer, shard) for shard in self._shards]
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                self._stopped.set()
                pool.shutdown(cancel_futures=True)
                raise
            return [future.result() for future in futures]

    def _transfer(self, shard: ShardId) -> int | Problem | None:
        """Copy one shard; return its bytes, None if it is there, or what is wrong."""
        key, store = commit_key(shard), str(self._source)
        raw = self._source.try_ranges([(key, 0, MAX_METADATA_BYTES)])[0]
        if isinstance(raw, UnreadableError):
            return unreadable_problem(store, shard, raw, where=key)
        if raw is None:
            message = f"{store}: shard {shard}: was dropped during the copy; copy again"
            return Problem(kind="missing", where=key, message=message, shard=str(shard))
        try:
            commit = self._parse(bytes(raw), shard)
        except FormatError as error:
            return Problem(kind="damaged", where=key, message=str(error), shard=str(shard))
        if self._is_there(shard, bytes(raw), commit):
            return None
        self._withdraw(key)
        objects = list(self._objects(shard, commit))
        keys = [key for key, _, _ in objects]
        for one in objects:
            if problem := self._copy_object(shard, *one):
                self._target.delete_many(keys)
                return problem
        self._target.sync(keys)
        self._target.put(key, bytes(raw))
        self._target.sync([key])
        return sum(stored.size for _, _, stored in objects)

    def _parse(self, raw: bytes, shard: ShardId) -> Commit:
        manifest, store = self._manifest, str(self._source)
        commit = commits.parse(raw, shard, manifest, store)
        index, records = self._table.index, self._table.records_of(shard)
        records = commits.records_in(commit, index, records, manifest.excluded)
        commits.check_exact(raw, commit, index, records, manifest.arrays[shard.bucket], store)
        return commit

    def _is_there(self, shard: ShardId, raw: bytes, commit: Commit) -> bool:
        key = commit_key(shard)
        if key not in self._there:
            return False
        found = self._target.try_ranges([(key, 0, MAX_METADATA_BYTES)])[0]
        sizes = {key: one.size for key, _, one in self._objects(shard, commit)}
        same_sizes = all(self._there.get(key) == size for key, size in sizes.items())
        return same_sizes and isinstance(found, memoryview) and bytes(found) == raw

    def _withdraw(self, key: str) -> None:
        """Remove the commit of a shard that is copied again: it must not vouch for a mixture."""
        if key in self._there:
            self._target.delete(key)
            if self._target.is_local:
                os.sync()  # not even where the power fails

    def _copy_object(
        self, shard: ShardId, key: str, array: Array, stored: StoredObject
    ) -> Problem | None:
        store = str(self._source)
        try:
            self._target.put_blocks(key, self._proven_blocks(key, stored))
        except _WrongBytesError as error:
            return shard_problem("damaged", store, shard, str(error), where=key, array=array.name)
        except UnreadableError as error:
            return unreadable_problem(store, shard, error, where=key, array=array.name)
        return None

    def _proven_blocks(self, key: str, stored: StoredObject) -> Iterator[bytes | memoryview]:
        """Yield the blocks of an object of the source; raises at the end if they are others."""
        size = 0

        def counted() -> Iterator[memoryview]:
            nonlocal size
            for block in self._source.read_blocks(key):
                if self._stopped.is_set():
                    raise _StoppedError
                size += len(block)
                if size > stored.size:  # however much more there is
                    return
                self._bar.update(len(block))
                yield block

        try:
            yield from checksums.proven(counted(), stored.xxh3_128)
        except ValueError as error:
            what = "is absent although its shard is committed" if not size else str(error)
            raise _WrongBytesError(what) from None

    def _objects(self, shard: ShardId, commit: Commit) -> Iterator[tuple[str, Array, StoredObject]]:
        for array in self._manifest.arrays[shard.bucket]:
            yield object_key(shard, array), array, commit.objects[array.name]

    def _bytes_of(self, shard: ShardId) -> int:
        """Bytes of a shard's objects at the source."""
        return sum(self._sizes.get(key, 0) for key in object_keys(self._manifest, shard))

    def _looks_copied(self, shard: ShardId) -> bool:
        """Whether the target has all of a shard, as far as sizes tell."""
        keys = [commit_key(shard), *object_keys(self._manifest, shard)]
        return all(self._there.get(key) == self._sizes.get(key) for key in keys)
