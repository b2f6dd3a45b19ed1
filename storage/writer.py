"""The writer: creates or grows a store, and commits its shards one by one."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from storage import canonical, checksums
from storage import commit as commits
from storage.checksums import CRC_BYTES
from storage.claims import Claim, Claims
from storage.commit import Commit, StoredObject
from storage.errors import (
    ClaimLostError,
    FormatError,
    IdentityError,
    StoreAccessError,
    StoreFullError,
)
from storage.exclusive import claimed_metadata
from storage.index import Index, ShardTable
from storage.layout import (
    BUCKETS,
    CLAIMS,
    COMMITS,
    DIGEST_KEY,
    INDEX,
    LOG,
    ROOT_KEY,
    commit_key,
    object_key,
    object_keys,
    root_json,
    seal,
)
from storage.location import PARTIAL_SUFFIX, Location
from storage.manifest import Manifest, check_version
from storage.metadata import Root, publish, read_index, read_root, refuse_inside_another
from storage.restart import begin_again, has_commits
from storage.schema import Array, ShardId
from storage.shards import EncodedShard

Item = TypeVar("Item")
Result = TypeVar("Result")

# Objects of a shard under way to an object store.
ARRAYS_AT_ONCE = 8
_OURS = {ROOT_KEY, DIGEST_KEY, INDEX, BUCKETS, COMMITS, CLAIMS, LOG}


class CacheWriter:
    """Writes the shards of a plan; many writers may share one store.

    Opening creates the store, or accepts one of the same identity whose index is the given one or
    a beginning of it (the rest is then appended). Metadata that a crash or a flipped bit has spoilt
    is written again; shards that are committed are never touched. A store of another identity or
    plan is begun again as this one while nothing of it is committed and nobody is at work on it.

    Args:
        location: local path, `s3://`, `gs://` or `az://` URL.
        manifest: from `Manifest.create`.
        index: from `build_index`; its buckets are those of the manifest, in the same order.

    Raises:
        IdentityError: the store is another cache, of which something is committed or written just
            now; names each differing field with both values.
        FormatError: something else lies there, or it is a new store inside another one.
        VersionError: a store of a newer format.
        StoreFullError: no space left.
        ValueError: manifest and index do not fit together.
    """

    def __init__(
        self, location: str | os.PathLike[str] | Location, manifest: Manifest, index: Index
    ) -> None:
        if manifest.bucket_names != index.bucket_names:
            raise ValueError(
                "manifest and index list different buckets, or in another order:"
                f" {manifest.bucket_names[:4]}... and {index.bucket_names[:4]}..."
            )
        self.location = Location(location)
        self.index = index
        self._table = ShardTable(index, manifest.shard_records)
        self._claims = Claims(self.location)
        self._has_committed = False
        self.manifest = self._open(manifest).manifest

    def missing(self) -> list[ShardId]:
        """Return the shards that are not committed, in plan order. One listing."""
        return commits.missing(self.location, self._table)

    def records_of(self, shard: ShardId) -> NDArray[np.int64]:
        """Return the record numbers that are written of a shard: all but those of excluded images.

        Raises:
            ValueError: the plan has no such shard.
        """
        records = self.planned_of(shard)
        return commits.without_excluded(self.index, records, self.manifest.excluded)

    def planned_of(self, shard: ShardId) -> NDArray[np.int64]:
        """Return the record numbers that the plan has in a shard, those of excluded images too.

        Raises:
            ValueError: the plan has no such shard.
        """
        if shard not in self._table:
            raise ValueError(f"{self.location}: the plan has no shard {shard}")
        return self._table.records_of(shard)

    def claim(self, shard: ShardId, owner: str, seconds: float) -> bool:
        """Take a shard for a time, or prolong the claim on it; False if somebody else has it.

        Args:
            shard: what to take.
            owner: who takes it, for people to read.
            seconds: after which others may take it over; `claims.MAX_LEASE_SEC` at most.
        """
        return self._claims.take(shard, owner, seconds)

    def holder(self, shard: ShardId) -> Claim | None:
        """Return the claim on a shard, ended or not, for people to read; None if there is none."""
        return self._claims.current(shard)

    def release(self, shard: ShardId) -> None:
        """Give up the claim on a shard, written or not."""
        self._claims.release(shard)

    def write(self, shard: ShardId, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Write and commit a shard. Nothing happens if it is committed already.

        Args:
            shard: which one.
            arrays: array name to (n, B) uint8, as `Array.join` gives it, in the order of
                `records_of(shard)`.

        Raises:
            ValueError: an array is absent, unknown, or of another shape or dtype.
            ClaimLostError: somebody else holds the shard now; nothing was committed.
            StoreFullError: no space left; nothing was committed.
            IdentityError: another job has begun the store again as another cache; likewise.
            StoreAccessError: the store does not give back what was put.
        """
        records = self.records_of(shard)
        stored = self.manifest.arrays[shard.bucket]
        _check_arrays(arrays, stored, len(records))
        if self.location.get(commit_key(shard)) is not None:
            return
        keys = object_keys(self.manifest, shard)
        self.location.sweep([*keys, commit_key(shard)])
        try:
            put = self._each(lambda one: self._put(shard, one, arrays[one.name]), stored)
            self.location.sync(keys)
            self._each(lambda pair: self._read_back(*pair), list(zip(keys, put, strict=True)))
            objects = {array.name: one for array, one in zip(stored, put, strict=True)}
            self._require_claim(shard)
            self._require_own_store()
            self._commit(shard, objects, records)
        except (StoreFullError, IdentityError):
            if self._claims.holds(shard):
                self.location.delete_many(keys)
                self._claims.release(shard)
            raise

    def write_log(self, name: str, entry: Mapping[str, Any]) -> None:
        """Put a JSON note under `log/`, which is outside every comparison and check."""
        self.location.put(f"{LOG}/{name}.json", canonical.dump(dict(entry)) + b"\n")

    def _each(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Do work for each array: at once where every request is a round trip, else in turn."""
        if self.location.is_local:
            return [work(item) for item in items]
        with ThreadPoolExecutor(ARRAYS_AT_ONCE) as pool:
            return list(pool.map(work, items))

    def _put(self, shard: ShardId, array: Array, data: NDArray[np.uint8]) -> StoredObject:
        shard_records = self.manifest.shard_records
        positions = self.index.slot[self.records_of(shard)] % shard_records
        encoded, key = EncodedShard(array, shard_records, data, positions), object_key(shard, array)
        whole = None if self.location.is_local else encoded.blocks.whole()
        # That takes a while: whoever has taken the shard over may have put his object by now.
        self._require_claim(shard, look=False)
        if whole is None:
            self.location.put_blocks(key, encoded.blocks)
        else:
            self.location.put(key, whole)
        return encoded.described()

    def _read_back(self, key: str, expected: StoredObject) -> None:
        # The CRC32Cs are not computed again: bytes of this hash have them (see `DigestedBlocks`).
        ends = expected.chunks[:, :2].sum(axis=1).tolist()
        crcs = [crc.to_bytes(CRC_BYTES, "little") for crc in expected.chunks[:, 2].tolist()]
        blocks = self.location.read_blocks(key)
        if checksums.xxh3_128_and_tails(blocks, ends, CRC_BYTES) != (expected.xxh3_128, crcs):
            raise StoreAccessError(
                f"{self.location}: {key} reads back other bytes than were put, or none; nothing"
                " was committed. Check disk and memory, that no other job writes this store, and"
                " that an object store shows at once what was put"
            )

    def _commit(
        self, shard: ShardId, objects: Mapping[str, StoredObject], records: NDArray[np.int64]
    ) -> None:
        entries = commits.record_entries(self.index, records)
        commit = Commit(self.manifest.cache_id, shard, entries, objects)
        raw = commits.dump(commit, self.manifest.arrays[shard.bucket])
        key = commit_key(shard)
        self.location.put(key, raw)
        self.location.sync([key])
        self._has_committed = True

    def _require_claim(self, shard: ShardId, *, look: bool = True) -> None:
        if not self._claims.holds(shard, look=look):
            raise ClaimLostError(f"{self.location}: shard {shard} is claimed by somebody else now")

    def _require_own_store(self) -> None:
        """Before the first commit: until there is one, another job may begin the store again."""
        if self._has_committed:
            return
        try:
            found = read_root(self.location).manifest
        except FileNotFoundError as error:
            raise IdentityError(
                f"{self.location}: another job is beginning it again, as another cache; choose"
                " another location"
            ) from error
        found.check_identity(self.manifest, str(self.location))
        if found.records < len(self.index):
            raise IdentityError(
                f"{self.location}: another job has begun it again, with {found.views} views"
                f" instead of {self.index.num_views}; use one config"
            )

    def _open(self, manifest: Manifest) -> Root:
        try:
            root, done = self._look(manifest)
        except IdentityError:
            if has_commits(self.location):
                raise
            root, done = None, False
        if root is None or not done:
            # Alone, and after another look: a job with another config may have started as well.
            with claimed_metadata(self.location):
                try:
                    root, done = self._look(manifest)
                except IdentityError as error:
                    begin_again(self.location, error)
                    root, done = None, False
                if root is None or not done:
                    old = None if root is None else root.sha256
                    root = publish(self.location, manifest, self.index, old)
        return root

    def _look(self, manifest: Manifest) -> tuple[Root | None, bool]:
        """Return the root that holds, and whether all metadata is there, whole and long enough."""
        try:
            root = read_root(self.location)
        except (FileNotFoundError, FormatError) as error:
            self._check_adoptable(manifest, error)
            return None, False
        root.manifest.check_identity(manifest, str(self.location))
        root.manifest.check_excluded(manifest.excluded, str(self.location))
        grows = self._check_index(root.manifest)
        whole = not (grows or root.growing) and self._index_is_intact(root.manifest)
        # A root that says anything else of index and arrays is written again as well.
        return root, whole and root.sha256 == checksums.sha256(
            root_json(seal(manifest, self.index)[0])
        )

    def _check_index(self, stored: Manifest) -> bool:
        """Return whether the given index goes beyond the stored one, which must begin it."""
        common = min(stored.records, len(self.index))
        if stored.records <= len(self.index):
            if self.index.prefix(common).digest() == stored.index_sha256:
                return stored.records < len(self.index)
        else:
            known = read_index(self.location, stored)
            if known.prefix(common).digest() == self.index.digest():
                store, keep = str(self.location), self.index.num_views
                raise IdentityError(
                    f"{store} holds {stored.views} views, the plan only {keep}: ask for"
                    f" {stored.views}, use another location, or drop the others:"
                    f" python -m storage drop-views {shlex.quote(store)} --keep {keep}"
                )
        raise IdentityError(
            f"{self.location} holds another plan: {stored.records} records in {stored.views}"
            f" views, of which the plan's {len(self.index)} records are no continuation"
        )

    def _index_is_intact(self, stored: Manifest) -> bool:
        try:
            read_index(self.location, stored)
        except FormatError:
            return False
        return True

    def _check_adoptable(self, manifest: Manifest, reason: Exception) -> None:
        """Refuse to create a store among things that are not the beginnings of this very store."""
        keys = self.location.sizes()
        if not keys:
            refuse_inside_another(self.location)
        tops = {key.partition("/")[0] for key in keys}
        strange = sorted(top for top in tops - _OURS if not top.endswith(PARTIAL_SUFFIX))
        if strange:
            raise FormatError(
                f"{self.location}: holds {strange[0]!r}, which is no part of a teacher cache;"
                " choose an empty location"
            )
        ours = (DIGEST_KEY, f"{INDEX}/", f"{COMMITS}/")
        if ROOT_KEY in keys and not any(key.startswith(ours) for key in keys):
            raise reason  # some other zarr group
        known = {commit_key(shard) for shard in self._table.shards}
        for key in keys:
            if key.startswith(f"{COMMITS}/") and not key.endswith(PARTIAL_SUFFIX):
                if key not in known:
                    raise IdentityError(
                        f"{self.location}: {key} belongs to another plan; choose another location"
                    )
                self._check_adoptable_commit(key, manifest)

    def _check_adoptable_commit(self, key: str, manifest: Manifest) -> None:
        what = f"{self.location}/{key}"
        try:
            body = commits.unframe(self.location.get(key) or b"", what)
        except FormatError:
            return  # whose it was cannot be told; a check finds it once there is a root again
        check_version(body, what)
        if body.get("cache_id") != manifest.cache_id:
            raise FormatError(f"{what}: belongs to another cache; choose another location")


def _check_arrays(
    arrays: Mapping[str, NDArray[Any]], stored: tuple[Array, ...], count: int
) -> None:
    names = {one.name for one in stored}
    if arrays.keys() != names:
        absent, unknown = sorted(names - arrays.keys()), sorted(arrays.keys() - names)
        raise ValueError(f"shard arrays: absent {absent}, unknown {unknown}")
    for one in stored:
        data = arrays[one.name]
        if data.shape != (count, one.num_bytes) or data.dtype != np.uint8:
            raise ValueError(
                f"shard arrays: {one.name} is {data.dtype}{data.shape},"
                f" expected uint8{(count, one.num_bytes)}"
            )
