"""The integrity check of a whole store, at three levels, without a GPU and without PyTorch.

quick  metadata against its digests, every commit against its own, every object's size
full   also every byte of every object
deep   also every record decoded: finite, detections sorted and inside their view
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from typing import Any

from storage import canonical, checksums
from storage.checker import LEVELS, ShardChecker, ShardResult
from storage.errors import FormatError, VersionError
from storage.index import Index, ShardTable
from storage.layout import CLAIMS, DIGEST_KEY, LOG, ROOT_KEY, commit_key, object_key
from storage.location import PARTIAL_SUFFIX, Location
from storage.manifest import Manifest
from storage.metadata import Root, read_index, read_root
from storage.plan import plan_from_json, records_digest
from storage.progress import Progress
from storage.report import Problem, Report
from storage.schema import ShardId

_BATCH = 256

# Starting a process takes as long as checking about this much.
_BYTES_PER_WORKER = 1 << 28


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
    try:
        root = read_root(location)
        index = read_index(location, root.manifest)
        table = ShardTable(index, root.manifest.shard_records)
    except VersionError as error:
        problem = Problem(kind="version", where=ROOT_KEY, message=str(error))
        return Report(store=str(location), level=level, problems=(problem,))
    except (FormatError, ValueError) as error:
        # Nothing behind the manifest and the index can be judged without them.
        problem = Problem(kind="damaged", where="metadata", message=str(error))
        return Report(store=str(location), level=level, problems=(problem,))
    problems = [] if expect is None else list(_check_expected(root.manifest, table, expect))
    sizes = _listed(location)
    problems += _check_metadata(location, root, sizes)
    if not root.growing:  # what an unfinished growth has left is no riddle
        problems += _check_strangers(root.manifest, table, sizes)
    problems += _check_uncommitted(root.manifest, table, sizes)
    committed = [shard for shard in table.shards if commit_key(shard) in sizes]
    found, num_bytes = _check_shards(
        location, root.manifest, index, level, committed, sizes, workers, progress
    )
    return Report(
        store=str(location), level=level, problems=(*problems, *found), records=len(index),
        shards=len(table), committed=len(committed), num_bytes=num_bytes,
    )  # fmt: skip


def _listed(location: Location) -> dict[str, int]:
    outside = (f"{CLAIMS}/", f"{LOG}/")
    return {key: size for key, size in location.sizes().items() if not key.startswith(outside)}


def _check_metadata(location: Location, root: Root, sizes: Mapping[str, int]) -> Iterator[Problem]:
    if root.growing:
        message = "run the dump again with the config that adds the views"
        yield Problem(kind="unfinished", where=DIGEST_KEY, message=message)
        return
    digests = root.manifest.digests
    keys = list(digests)
    for start in range(0, len(keys), _BATCH):
        batch = keys[start : start + _BATCH]
        for key, raw in zip(batch, location.get_many(batch), strict=True):
            if raw is None:
                message = "absent; repair or the next run of the dump writes it again"
                yield Problem(kind="missing", where=key, message=message)
            elif checksums.sha256(raw) != digests[key]:
                message = "its SHA-256 is not that of the manifest; repair or the next run of"
                message += " the dump writes it again"
                yield Problem(kind="damaged", where=key, message=message)


def _check_strangers(
    manifest: Manifest, table: ShardTable, sizes: Mapping[str, int]
) -> Iterator[Problem]:
    known = {ROOT_KEY, DIGEST_KEY, *manifest.digests}
    for shard in table.shards:
        known.add(commit_key(shard))
        known.update(object_key(shard, field) for field in manifest.fields[shard.bucket])
    for key in sorted(sizes.keys() - known):
        if key.endswith(PARTIAL_SUFFIX):
            message = "an unfinished file: a dump is at work, or was interrupted; it can go"
            yield Problem(kind="uncommitted", where=key, message=message)
        else:
            yield Problem(kind="foreign", where=key, message="no part of this store's plan")


def _check_uncommitted(
    manifest: Manifest, table: ShardTable, sizes: Mapping[str, int]
) -> Iterator[Problem]:
    for shard in table.shards:
        if commit_key(shard) in sizes:
            continue
        fields = manifest.fields[shard.bucket]
        present = sum(object_key(shard, field) in sizes for field in fields)
        kind, what = ("uncommitted", f"{present} objects, ") if present else ("missing", "")
        message = f"{what}no commit; the next run of the dump writes the shard"
        yield Problem(kind=kind, where=str(shard), message=message, shard=str(shard))


def _check_expected(
    manifest: Manifest, table: ShardTable, expect: Mapping[str, Any]
) -> Iterator[Problem]:
    plan = plan_from_json(expect, "plan")
    # A plan may leave open what only a dump knows, such as the numerics of its machine.
    stated = {name: value for name, value in manifest.identity.items() if name in plan.identity}
    for difference in canonical.differences(stated, plan.identity):
        message = f"stored {difference.stored!r}, wanted {difference.wanted!r}"
        yield Problem(kind="unexpected", where=difference.name, message=message)
    for shard, digest in plan.shards.items():
        if shard not in table:
            message = "the plan has this shard, the store's index does not; dump the other views"
            yield Problem(kind="missing", where=str(shard), message=message)
        elif records_digest(table, shard) != digest:
            message = "the store's index has other records here than the plan"
            yield Problem(kind="unexpected", where=str(shard), message=message)


def _check_shards(
    location: Location,
    manifest: Manifest,
    index: Index,
    level: str,
    shards: list[ShardId],
    sizes: Mapping[str, int],
    workers: int,
    progress: bool,
) -> tuple[list[Problem], int]:
    tasks, costs = [], []
    for shard in shards:
        keys = [object_key(shard, field) for field in manifest.fields[shard.bucket]]
        tasks.append((shard, {key: sizes[key] for key in keys if key in sizes}))
        read = sum(tasks[-1][1].values()) if level != "quick" else 0
        costs.append(sizes[commit_key(shard)] + read)
    workers = min(workers, len(tasks), 1 + sum(costs) // _BYTES_PER_WORKER)
    results = []
    checker = ShardChecker(location, manifest, index, level)
    with (
        Progress(f"verify {level}", sum(costs), shown=progress) as bar,
        _mapped(checker, tasks, workers) as checked,
    ):
        for result, cost in zip(checked, costs, strict=True):
            results.append(result)
            bar.advance(cost)
    problems = [problem for result in results for problem in _judge(result, results)]
    return problems, sum(result.num_bytes for result in results)


def _judge(result: ShardResult, results: list[ShardResult]) -> Iterator[Problem]:
    """Yield a shard's problems, telling objects of other places from damaged ones."""
    for problem in result.problems:
        if problem.where not in result.mismatched:
            yield problem
    sized = {problem.where: problem for problem in result.problems}
    for key, found in result.mismatched.items():
        places = (other for one in results for other, xxh in one.committed.items() if xxh == found)
        origin = next(places, None)
        if origin is None and key in sized:
            yield sized[key]
            continue
        kind = "damaged" if origin is None else "swapped"
        what = "its XXH3-128 does not match the commit" if origin is None else f"is {origin}"
        yield Problem(
            kind=kind, where=key, message=f"{what}; repair drops the shard",
            shard=str(result.shard), spoils=True,
        )  # fmt: skip


_Task = tuple[ShardId, dict[str, int]]


@contextmanager
def _mapped(
    checker: ShardChecker, tasks: list[_Task], workers: int
) -> Iterator[Iterator[ShardResult]]:
    if workers <= 1:
        yield (checker.check(*task) for task in tasks)
        return
    # Spawned: the client of an object store does not survive a fork.
    with ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), _set_checker, (checker,)
    ) as pool:
        yield pool.map(_check, tasks, chunksize=max(1, min(16, len(tasks) // (4 * workers))))


_checker: ShardChecker | None = None


def _set_checker(checker: ShardChecker) -> None:
    global _checker
    _checker = checker


def _check(task: _Task) -> ShardResult:
    assert _checker is not None
    return _checker.check(*task)
