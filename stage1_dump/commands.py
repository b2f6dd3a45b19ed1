"""The commands of `python -m stage1_dump`: each prints its result and returns the exit code.

What a command needs is imported when it runs: detectron2 alone takes seconds.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from detectors.command import read_config
from detectors.stopping import Interrupted, StopSignals
from storage.whole import write_whole

if TYPE_CHECKING:
    from detectron2.config import CfgNode

_MAX_RESTARTS = 3  # of each rank, as --help says
_GOES_ON = "committed shards stay; run the same command again to go on"


def plan(args: argparse.Namespace) -> int:
    """Say what would be written, and write nothing (but the plan itself, with --output)."""
    from .estimate import Rate, estimate, plan_text
    from .prepare import prepare

    cfg = _config_of(args)
    prepared = prepare(cfg)
    rate = Rate(records_per_sec=args.rate, source="as given") if args.rate else None
    samples = None
    if args.measure:
        from .measure import measure

        rate, samples = measure(prepared, cfg, args.measure)
    result = estimate(
        prepared,
        rate=rate,
        samples=samples,
        images_per_sec=args.images_per_sec,
        budget_bytes=args.budget,
    )
    print(result.to_json() if args.json else result)
    if args.output:
        target = Path(args.output)
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, plan_text(prepared))
    return 0


def run(args: argparse.Namespace) -> int:
    """Dump, or go on with a dump, on this rank."""
    from .launch import end_with_launcher, run_ranks

    end_with_launcher()
    from .dump import run as run_dump  # which takes seconds

    if args.max_restarts is not None and args.num_gpus == 1:
        raise ValueError(
            "--max-restarts: expected with --num-gpus of 2 or more, whose ranks are started again;"
            " leave it out"
        )
    cfg = _config_of(args)
    try:
        # Ctrl-C and a scheduler's SIGTERM unwind like an error, so that claims are given back.
        with StopSignals():
            if args.num_gpus > 1:
                profile = ["--profile"] if args.profile else []
                imports = [f"--import={name}" for name in args.imports]
                options = [*profile, *imports, "--config-file", args.config_file, *args.opts]
                restarts = _MAX_RESTARTS if args.max_restarts is None else args.max_restarts
                return run_ranks(args.num_gpus, options, max_restarts=restarts)
            report = run_dump(cfg, profiled=args.profile)
    except Interrupted as error:
        raise Interrupted(error.number, _GOES_ON) from None
    print(report)
    if args.profile:
        print(report.shares)
    return 1 if report.failures else 0


def check(args: argparse.Namespace) -> int:
    """Run the teacher again on a sample of a cache, and compare."""
    from .check import check as check_cache

    report = check_cache(_config_of(args), sample=args.sample, seed=args.seed)
    print(report.to_json() if args.json else report)
    return 0 if report.agrees else 1


def status(args: argparse.Namespace) -> int:
    """Say how much of a cache is there."""
    from .status import read_status

    found = read_status(args.cache)
    print(found.to_json() if args.json else found)
    return 0


def evaluate(args: argparse.Namespace) -> int:
    """Compute the teacher's AP from a cache."""
    from configs.imports import import_modules

    from .evaluate import evaluate_cache

    import_modules(args.imports, "--import")
    found = evaluate_cache(args.cache, args.annotations, view=args.view, classes=args.classes)
    print(found.to_json() if args.json else found)
    return 0


def _config_of(args: argparse.Namespace) -> CfgNode:
    from configs.stock_keys import DUMP

    return read_config(args, DUMP)
