"""The integrity check of a whole store, at three levels, without a GPU and without PyTorch.

quick  metadata against its digests, every commit against its own, every object's size
full   also every byte of every object
deep   also every record decoded: finite, detections sorted and inside their view
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any

from storage import canonical, checksums
from storage.checker import ShardChecker, ShardResult, Task
from storage.errors import CacheError, FormatError, UnreadableError, VersionError
from storage.index import ShardTable
from storage.layout import (
    COMMITS,
    DIGEST_KEY,
    MAX_METADATA_BYTES,
    ROOT_KEY,
    index_keys,
    object_keys,
    zarr_json_objects,
)
from storage.location import Location
from storage.manifest import Manifest
from storage.metadata import Root, read_index, read_root
from storage.plan import plan_from_json, records_digest
from storage.progress import Progress
from storage.report import LEVELS, Problem, Report, repair_command, shard_problem, written_again
from storage.schema import ShardId
from storage.strangers import check_strangers, committed_shards, obstacle_problem
from storage.workers import mapped

_BATCH = 64
_ATTEMPTS = 3

# A process is worth starting for about this much, and sends its results back after so much.
# Measured in bytes read; see `ShardChecker.work_of`.
_WORK_PER_PROCESS = 1 << 27
_WORK_PER_BATCH = 1 << 30


def verify(
    location: str | os.PathLike[str] | Location,
    level: str = "full",
    expect: Mapping[str, Any] | None = None,
    workers: int = 1,
    progress: bool = False,
) -> Report:
    """Check a store.

    Args:
        location: of the store.
        level: "quick", "full" or "deep"; see the head of this module.
        expect: what `plan_to_json` returned; the store must hold at least its shards.
        workers: processes at most; a small store is checked in this one. More than one needs a
            caller that can be imported (`if __name__ == "__main__":`), since they are spawned.
        progress: show it on stderr.

    Raises:
        FileNotFoundError: there is no store.
        ValueError: an unknown level.
        FormatError, VersionError: `expect` is no plan.
    """
    if level not in LEVELS:
        raise ValueError(f"level {level!r}: expected one of {', '.join(LEVELS)}")
    location = Location(location)
    for _ in range(_ATTEMPTS):
        report, sha256 = _check(location, level, expect, workers, progress)
        # A growth that began meanwhile makes the new views look foreign: then look again.
        if report.ok or _root_sha256(location) == sha256:
            break
    return report


def _root_sha256(location: Location) -> str:
    """Return the digest of the root that holds, or "" if there is none."""
    try:
        return read_root(location).sha256
    except (CacheError, FileNotFoundError):
        return ""


def _check(
    location: Location, level: str, expect: Mapping[str, Any] | None, workers: int, progress: bool
) -> tuple[Report, str]:
    """Check a store; return the report and the digest of the root that it is about."""
    store = str(location)
    try:
        root = read_root(location)
        index = read_index(location, root.manifest)
        checker = ShardChecker(location, root.manifest, index, level)
    except VersionError as error:
        problem = Problem(kind="version", where=ROOT_KEY, message=str(error))
        return Report(store=store, level=level, problems=(problem,)), ""
    except UnreadableError as error:
        problem = _unreadable_metadata(store, error)
        return Report(store=store, level=level, problems=(problem,)), ""
    except (FormatError, ValueError) as error:
        # Nothing behind the manifest and the index can be judged without them.
        problem = _obstacle_of_index(location) or Problem(
            kind="damaged", where="metadata", message=str(error)
        )
        return Report(store=store, level=level, problems=(problem,)), ""
    table = checker.table
    problems = [] if expect is None else list(_check_expected(store, root.manifest, table, expect))
    shards = committed_shards(location.listing(COMMITS), table)
    # The listing of an object store has the sizes; asking for each would be a request each.
    listing = None if location.is_local else location.listing()
    known_sizes = None if listing is None else listing.sizes
    with _results(checker, shards, known_sizes, workers) as results:
        listing = listing or location.listing()  # while the processes are at work
        sizes = listing.sizes
        problems += _check_metadata(location, root)
        problems += check_strangers(store, root, table, set(shards), listing)
        problems += _check_uncommitted(store, root.manifest, table, shards, sizes)
        costs = {shard: checker.bytes_read(shard, sizes) for shard in shards}
        bar = Progress(f"verify {level}", total=sum(costs.values()), unit="B", shown=progress)
        found = list(_with_progress(results, costs, bar))
    problems += _judge(store, found)
    return Report(
        store=store, level=level, problems=tuple(problems), records=len(index),
        shards=len(table), committed=len(shards), excluded=len(root.manifest.excluded),
        compared=sum(one.num_records for one in found),
        num_bytes=sum(one.num_bytes for one in found),
    ), root.sha256  # fmt: skip


def _unreadable_metadata(store: str, error: UnreadableError) -> Problem:
    """Describe what keeps the root, its digest, the index or a zarr.json from being read."""
    if not error.lost:
        message = f"{store}/{error.key}: {error.reason}; make it readable, and check again"
        return Problem(kind="unreadable", where=error.key, message=message)
    message = (
        f"{store}/{error.key}: {error.reason}; run `{repair_command(store)}`, which"
        " removes it, then the dump again with the same config"
    )
    return Problem(kind="damaged", where=error.key, message=message, in_the_way=True)


def _obstacle_of_index(location: Location) -> Problem | None:
    """Describe what lies in the place of a folder of the index, if that is why it is absent."""
    for key in index_keys(records=1):
        if found := location.obstacle(key):
            return obstacle_problem(str(location), found[1], found[0])
    return None


def _check_metadata(location: Location, root: Root) -> Iterator[Problem]:
    if root.growing:
        message = f"{location}: views were being added or dropped; run that again, the dump with"
        message += " the config that adds them, or `python -m storage drop-views`"
        yield Problem(kind="unfinished", where=DIGEST_KEY, message=message)
        return
    manifest = root.manifest
    yield from _check_derived(location, manifest)
    remedy = f"run `{repair_command(str(location))}`, which writes it again"
    keys = list(manifest.digests)
    for start in range(0, len(keys), _BATCH):
        ranges = [(key, 0, MAX_METADATA_BYTES) for key in keys[start : start + _BATCH]]
        for (key, _, _), raw in zip(ranges, location.try_ranges(ranges), strict=True):
            if isinstance(raw, UnreadableError):
                yield _unreadable_metadata(str(location), raw)
            elif raw is None:
                message = f"{location}/{key}: absent; {remedy}"
                yield Problem(kind="missing", where=key, message=message)
            elif checksums.sha256(raw) != manifest.digests[key]:
                message = f"{location}/{key}: its SHA-256 is not that of the manifest; {remedy}"
                yield Problem(kind="damaged", where=key, message=message)


def _check_derived(location: Location, manifest: Manifest) -> Iterator[Problem]:
    """Compare the manifest's digests with those of the objects that follow from it."""
    derived = dict(zarr_json_objects(manifest, manifest.slots, manifest.records))
    index = set(index_keys(manifest.records))
    for key in sorted(manifest.digests.keys() | derived.keys() | index):
        if key in index and key in manifest.digests:
            continue  # compared with the index's own digest when it was read
        if key in derived and checksums.sha256(derived[key]) == manifest.digests.get(key):
            continue
        message = (
            f"{location}/{key}: the manifest's SHA-256 of it is not that of what the format asks"
            f" for; {written_again('both')}"
        )
        yield Problem(kind="damaged", where=key, message=message)


def _check_uncommitted(
    store: str,
    manifest: Manifest,
    table: ShardTable,
    committed: list[ShardId],
    sizes: Mapping[str, int],
) -> Iterator[Problem]:
    known = set(committed)
    for shard in table.shards:
        if shard in known:
            continue
        present = sum(key in sizes for key in object_keys(manifest, shard))
        kind, what = ("uncommitted", f"{present} objects, ") if present else ("missing", "")
        message = f"{store}: shard {shard}: {what}no commit; run the dump again to write it"
        yield Problem(kind=kind, where=str(shard), message=message, shard=str(shard))


def _check_expected(
    store: str, manifest: Manifest, table: ShardTable, expect: Mapping[str, Any]
) -> Iterator[Problem]:
    plan = plan_from_json(expect, "plan")
    # A plan may leave open what only a dump knows, such as the numerics of its machine.
    stated = {name: value for name, value in manifest.identity.items() if name in plan.identity}
    for one in canonical.differences(stated, plan.identity):
        message = f"{store}: {one}; expect the plan of the config it was dumped with, or dump"
        message += " to another location"
        yield Problem(kind="unexpected", where=one.name, message=message)
    for shard, digest in plan.shards.items():
        if shard not in table:
            message = f"{store}: shard {shard}: in the plan, but not in the store's index; run the"
            message += " dump with the config of the plan"
            yield Problem(kind="missing", where=str(shard), message=message, shard=str(shard))
        elif records_digest(table, shard) != digest:
            message = f"{store}: shard {shard}: the store's index has other records here than the"
            message += " plan; dump to another location"
            yield Problem(kind="unexpected", where=str(shard), message=message, shard=str(shard))


def _results(
    checker: ShardChecker, shards: list[ShardId], sizes: Mapping[str, int] | None, workers: int
) -> AbstractContextManager[Iterator[list[ShardResult]]]:
    """Start checking shards; the results come in batches."""
    tasks: list[Task] = [(shard, None) for shard in shards]
    if sizes is not None:
        tasks = [(one, tuple(map(sizes.get, checker.keys_of(one)))) for one in shards]
    work = sum(checker.work_of(shard) for shard in shards)
    workers = min(workers, len(tasks), 1 + work // _WORK_PER_PROCESS)
    most = len(tasks) * _WORK_PER_BATCH // max(work, 1)
    size = max(1, min(most, len(tasks) // (8 * max(workers, 1)), _BATCH))
    batches = [tasks[start : start + size] for start in range(0, len(tasks), size)]
    return mapped(ShardChecker.check_many, checker, batches, workers=workers)


def _with_progress(
    batches: Iterator[list[ShardResult]], costs: Mapping[ShardId, int], progress: Progress
) -> Iterator[ShardResult]:
    with progress:
        for batch in batches:
            progress.update(sum(costs[result.shard] for result in batch))
            yield from batch


def _judge(store: str, results: list[ShardResult]) -> Iterator[Problem]:
    """Yield the shards' problems, telling objects of other places from damaged ones."""
    spoilt = [result for result in results if not result.ok]
    wanted = {digest for result in spoilt for digest in result.mismatched.values()}
    origins = {
        digest: key
        for result in results
        for key, digest in result.committed.items()
        if digest in wanted
    }
    for result in spoilt:
        # What is wrong with the size of an object of another place needs no line of its own.
        moved = {key for key, digest in result.mismatched.items() if digest in origins}
        sized = {problem.where for problem in result.problems}
        yield from (problem for problem in result.problems if problem.where not in moved)
        for key, digest in result.mismatched.items():
            if digest not in origins and key in sized:
                continue
            kind, what = "damaged", "its bytes are not those of the commit (XXH3-128)"
            if digest in origins:
                kind, what = "swapped", f"holds the bytes of {origins[digest]}"
            yield shard_problem(
                kind, store, result.shard, what, where=key, array=result.arrays[key]
            )
