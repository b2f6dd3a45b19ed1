"""Repair: drops what cannot be trusted, so that the next run of the dump redoes just that."""

from __future__ import annotations

import os
from dataclasses import dataclass

from storage import checksums
from storage.errors import FormatError, VersionError
from storage.layout import commit_key, object_key, zarr_json_objects
from storage.location import Location
from storage.manifest import Manifest
from storage.metadata import read_root
from storage.report import Problem, Report
from storage.schema import ShardId
from storage.verification import verify


@dataclass(frozen=True, kw_only=True)
class Repair:
    """What a repair does, or did.

    Attributes:
        store: location.
        shards: shards to drop: committed, but damaged.
        rewritten: zarr.json files that follow from the manifest and are written again.
        left: problems that a repair cannot solve; their messages say what can.
    """

    store: str
    shards: tuple[ShardId, ...]
    rewritten: tuple[str, ...]
    left: tuple[Problem, ...]


def plan_repair(location: Location, report: Report) -> Repair:
    """Decide what to do about the problems of a report; changes nothing."""
    spoilt = {problem.shard for problem in report.problems if problem.spoils}
    rewritable = _rewritable(location) if report.problems else {}
    rewritten = {one.where for one in report.problems if one.where in rewritable}
    left = (
        one for one in report.problems if one.shard not in spoilt and one.where not in rewritten
    )
    return Repair(
        store=report.store,
        shards=tuple(sorted(_shard(name) for name in spoilt)),
        rewritten=tuple(sorted(rewritten)),
        left=tuple(left),
    )


def apply_repair(location: Location, repair: Repair) -> None:
    """Drop the shards and write the files that `plan_repair` named."""
    rewritable = _rewritable(location) if repair.rewritten else {}
    for key in repair.rewritten:
        location.put(key, rewritable[key])
    location.sync(repair.rewritten)
    if repair.shards:
        manifest = read_root(location).manifest
        for shard in repair.shards:
            drop_shard(location, manifest, shard)


def drop_shard(location: Location, manifest: Manifest, shard: ShardId) -> None:
    """Remove a shard. The commit goes first: what remains after a crash is plain garbage."""
    location.delete(commit_key(shard))
    for field in manifest.fields[shard.bucket]:
        location.delete(object_key(shard, field))


def repair(location: str | os.PathLike[str] | Location, workers: int = 1) -> Repair:
    """Check a store in full, then drop exactly its damaged shards.

    Raises:
        FileNotFoundError: there is no store.
    """
    location = Location(location)
    plan = plan_repair(location, verify(location, "full", workers=workers))
    apply_repair(location, plan)
    return plan


def _rewritable(location: Location) -> dict[str, bytes]:
    """Return the zarr.json files whose bytes this software can tell from the manifest alone."""
    try:
        manifest = read_root(location).manifest
    except (FormatError, VersionError):
        return {}
    objects = zarr_json_objects(manifest, manifest.slots, manifest.records)
    return {
        key: data for key, data in objects if checksums.sha256(data) == manifest.digests.get(key)
    }


def _shard(name: str) -> ShardId:
    bucket, _, number = name.partition("/")
    return ShardId(bucket, int(number))
