"""Repair: drops what cannot be trusted, so that the next run of the dump redoes just that."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from storage import checksums
from storage.errors import CacheError, StoreFullError
from storage.exclusive import claimed
from storage.layout import commit_key, object_keys, zarr_json_objects
from storage.location import PARTIAL_SUFFIX, Location
from storage.manifest import Manifest
from storage.metadata import read_root
from storage.report import Problem, Report
from storage.schema import ShardId
from storage.verification import verify

_CLAIMED_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What a repair does, or did.

    Attributes:
        store: location.
        shards: shards to drop: committed, but damaged.
        rewritten: zarr.json files that follow from the manifest and are written again.
        removed: unfinished files that an interrupted dump has left, and what lies in the place of
            a part of the store: folders, FIFOs, links to themselves.
        left: problems that a repair cannot solve; their messages say what can.
    """

    store: str
    shards: tuple[ShardId, ...]
    rewritten: tuple[str, ...]
    removed: tuple[str, ...]
    left: tuple[Problem, ...]

    def lines(self) -> list[str]:
        """Return what is done as text."""
        return [
            *(f"drop: {shard}" for shard in self.shards),
            *(f"rewrite: {key}" for key in self.rewritten),
            *(f"remove: {key}" for key in self.removed),
            *(f"left: {problem}" for problem in self.left),
        ]


def plan_repair(location: Location, report: Report) -> Repair:
    """Decide what to do about the problems of a report; changes nothing."""
    spoilt = {problem.shard for problem in report.problems if problem.spoils}
    rewritable = _rewritable(location) if report.problems else {}
    rewritten = {
        one.where for one in report.problems if one.where in rewritable and one.kind != "unreadable"
    }
    removed = {
        one.where for one in report.problems if one.in_the_way or one.where.endswith(PARTIAL_SUFFIX)
    }
    solved = rewritten | removed
    left = (one for one in report.problems if one.shard not in spoilt and one.where not in solved)
    return Repair(
        store=report.store,
        shards=tuple(sorted(_shard(name) for name in spoilt)),
        rewritten=tuple(sorted(rewritten)),
        removed=tuple(sorted(removed)),
        left=tuple(left),
    )


def apply_repair(location: Location, repair: Repair) -> None:
    """Drop the shards, and write and remove the files, that `plan_repair` named."""
    # A dump at work that loses its unfinished file writes it once more.
    location.delete_many(repair.removed)
    rewritable = _rewritable(location) if repair.rewritten else {}
    for key in repair.rewritten:
        location.put(key, rewritable[key])
    location.sync(repair.rewritten)
    if repair.shards:
        drop_shards(location, read_root(location).manifest, repair.shards)


def drop_shards(location: Location, manifest: Manifest, shards: Sequence[ShardId]) -> None:
    """Remove shards. The commits go first: what remains after a crash is plain garbage.

    A dump at work may not write one of them again before its old objects are gone.
    """
    for start in range(0, len(shards), _CLAIMED_AT_ONCE):
        some = shards[start : start + _CLAIMED_AT_ONCE]
        try:
            with claimed(location, some) as claims:
                _drop_commits(location, some)
                _drop_objects(location, manifest, [one for one in some if claims.holds(one)])
        except StoreFullError:  # of the claims: where these have no room, no dump has any either
            _drop_commits(location, some)
            _drop_objects(location, manifest, some)


def _drop_commits(location: Location, shards: Sequence[ShardId]) -> None:
    location.delete_many([commit_key(shard) for shard in shards])
    if location.is_local:
        # No commit may outlive its objects, not even where the power fails: a dump would take the
        # shard for done.
        os.sync()


def _drop_objects(location: Location, manifest: Manifest, shards: Sequence[ShardId]) -> None:
    location.delete_many([key for shard in shards for key in object_keys(manifest, shard)])


def repair(
    location: str | os.PathLike[str] | Location, workers: int = 1, level: str = "full"
) -> Repair:
    """Check a store at level "full" or "deep", then drop exactly its damaged shards.

    Raises:
        FileNotFoundError: there is no store.
    """
    location = Location(location)
    plan = plan_repair(location, verify(location, level, workers=workers))
    apply_repair(location, plan)
    return plan


def _rewritable(location: Location) -> dict[str, bytes]:
    """Return the zarr.json files whose bytes this software can tell from the manifest alone."""
    try:
        manifest = read_root(location).manifest
    except (CacheError, FileNotFoundError):
        return {}
    objects = zarr_json_objects(manifest, manifest.slots, manifest.records)
    return {
        key: data for key, data in objects if checksums.sha256(data) == manifest.digests.get(key)
    }


def _shard(name: str) -> ShardId:
    bucket, _, number = name.partition("/")
    return ShardId(bucket, int(number))
