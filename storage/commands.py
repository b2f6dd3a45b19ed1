"""The commands of `python -m storage`: each prints its result and returns the exit code."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from storage import canonical
from storage.commit import missing
from storage.comparison import compare
from storage.copying import copy_cache
from storage.errors import FormatError
from storage.index import ShardTable
from storage.layout import LOG, MAX_NOTE_BYTES, NOTE
from storage.location import PARTIAL_SUFFIX, Location
from storage.metadata import read_index, read_root
from storage.plan import plan_from_json
from storage.repairs import apply_repair, plan_repair
from storage.shrinking import drop_views, plan_drop
from storage.verification import verify

OK, FAILED = 0, 1


def run_info(cache: str, *, as_json: bool) -> int:
    """Say what a store holds."""
    location = Location(cache)
    manifest = read_root(location).manifest
    table = ShardTable(read_index(location, manifest), manifest.shard_records)
    done = len(table) - len(missing(location, table))
    buckets = {
        name: {
            "slots": manifest.slots[name],
            "bytes_per_record": {array.name: array.num_bytes for array in arrays},
        }
        for name, arrays in manifest.arrays.items()
    }
    info = {
        "store": str(location),
        "cache_id": manifest.cache_id,
        **manifest.identity,
        "excluded": list(manifest.excluded),
        "views": manifest.views,
        "records": manifest.records,
        "shards": len(table),
        "committed": done,
        "buckets": buckets,
    }
    _print([json.dumps(info, indent=1)] if as_json else _outline(info))
    return OK


def run_verify(cache: str, *, level: str, expect: str | None, workers: int, as_json: bool) -> int:
    """Check a store."""
    plan = None
    if expect is not None:
        plan = canonical.load(Path(expect).read_bytes(), expect)
        plan_from_json(plan, expect)  # refused before any work
    report = verify(cache, level, plan, workers, progress=True)
    _print([json.dumps(report.to_json(), indent=1)] if as_json else report.lines())
    return OK if report.ok else FAILED


def run_repair(cache: str, *, level: str, dry_run: bool, workers: int, as_json: bool) -> int:
    """Drop the damaged shards of a store, named first."""
    location = Location(cache)
    plan = plan_repair(location, verify(location, level, None, workers, progress=True))
    if as_json:
        summary = {
            "store": plan.store,
            "dropped": [str(shard) for shard in plan.shards],
            "rewritten": list(plan.rewritten),
            "removed": list(plan.removed),
            "left": [str(problem) for problem in plan.left],
            "dry_run": dry_run,
        }
        _print([json.dumps(summary, indent=1)])
    else:
        _print(plan.lines())
    if not dry_run:
        apply_repair(location, plan)
    if not as_json:
        verb = "would be dropped" if dry_run else "dropped"
        redo = plan.shards or any(not key.endswith(PARTIAL_SUFFIX) for key in plan.removed)
        advice = "; run the dump again to write them" if redo else ""
        _print([f"{location}: {len(plan.shards)} shards {verb}{advice}"])
    # What is merely not written yet is for the dump to do; anything else needs a person.
    solved = {"missing", "uncommitted", "unfinished"}
    return OK if all(problem.kind in solved for problem in plan.left) else FAILED


def run_drop_views(cache: str, *, keep: int, dry_run: bool, as_json: bool) -> int:
    """Drop all views of a store but the first ones, named first."""
    location = Location(cache)
    plan = plan_drop(location, keep)
    _print(
        [json.dumps({**asdict(plan), "dry_run": dry_run}, indent=1)] if as_json else plan.lines()
    )
    if not dry_run:
        drop_views(location, keep, progress=True)
    if not as_json:
        stay = "view 0 stays" if keep == 1 else f"views 0 to {keep - 1} stay"
        _print([f"{location}: {stay}{'; nothing was changed yet' if dry_run else ''}"])
    return OK


def run_copy(cache: str, *, target: str, transfers: int, as_json: bool) -> int:
    """Copy a store, or the rest of it; fails if a shard of the source is damaged."""
    result = copy_cache(cache, target, transfers, progress=True)
    _print([json.dumps(result.to_json(), indent=1)] if as_json else result.lines())
    return FAILED if result.problems else OK


def run_compare(cache: str, *, other: str, as_json: bool) -> int:
    """Compare two stores; fails if a byte differs."""
    result = compare(cache, other, progress=True)
    _print([json.dumps(result.to_json(), indent=1)] if as_json else result.lines())
    return OK if result.same_bytes else FAILED


def read_logs(cache: str) -> dict[str, Any]:
    """Return what `CacheWriter.write_log` put, by name.

    Notes are outside every check: what is none, or cannot be read, is no reason to stop.
    """
    location = Location(cache)
    keys = [key for key in sorted(location.listing(LOG).sizes) if NOTE.fullmatch(key)]
    raws = location.try_ranges([(key, 0, MAX_NOTE_BYTES) for key in keys])
    logs = {}
    for key, raw in zip(keys, raws, strict=True):
        if isinstance(raw, memoryview):
            with suppress(FormatError):  # a torn one
                logs[key.removeprefix(f"{LOG}/").removesuffix(".json")] = canonical.load(
                    bytes(raw), key
                )
    return logs


def _print(lines: Iterable[str]) -> None:
    for line in lines:
        print(line, flush=True)


def _outline(value: Any, indent: str = "") -> Iterable[str]:
    """Yield a JSON object as indented `name: value` lines."""
    for name, inner in value.items():
        if isinstance(inner, dict) and inner:
            yield f"{indent}{name}:"
            yield from _outline(inner, f"{indent}  ")
        else:
            yield f"{indent}{name}: {inner if isinstance(inner, str) else json.dumps(inner)}"
