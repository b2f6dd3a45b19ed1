"""`python -m stage1_dump`: plan a teacher cache, write it, check it, and see how far it is."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from pathlib import Path

from detectors.command import add_config_arguments, run_command


def plan(args: argparse.Namespace) -> int:
    """Say what would be written, and write nothing (but the plan itself, with --output)."""
    from configs.loader import load_config

    from .estimate import Rate, estimate, plan_text
    from .prepare import prepare

    cfg = load_config(args.config_file, args.opts)
    prepared = prepare(cfg)
    rate = Rate(records_per_sec=args.rate, source="as given") if args.rate else None
    if args.measure:
        from .measure import measure_rate

        rate = measure_rate(prepared, cfg, args.measure)
    result = estimate(prepared, rate=rate)
    print(result.to_json() if args.json else result)
    if args.output:
        Path(args.output).write_text(plan_text(prepared))
    return 0


def run(args: argparse.Namespace) -> int:
    """Dump, or go on with a dump, on this rank."""
    from configs.loader import load_config

    from .dump import run as run_dump
    from .launch import run_ranks

    # A scheduler's SIGTERM unwinds like an error, so that claims are given back.
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        if args.num_gpus > 1:
            profile = ["--profile"] if args.profile else []
            options = [*profile, "--config-file", args.config_file, *args.opts]
            return run_ranks(args.num_gpus, options, max_restarts=args.max_restarts)
        report = run_dump(load_config(args.config_file, args.opts), profiled=args.profile)
    finally:
        signal.signal(signal.SIGTERM, before)
    print(report)
    if args.profile:
        print(report.shares)
    return 1 if report.failures else 0


def check(args: argparse.Namespace) -> int:
    """Run the teacher again on a sample of a cache, and compare."""
    from configs.loader import load_config

    from .check import check as check_cache

    report = check_cache(
        load_config(args.config_file, args.opts), sample=args.sample, seed=args.seed
    )
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
    from .evaluate import evaluate_cache

    found = evaluate_cache(args.cache, args.annotations, view=args.view)
    print(found.to_json() if args.json else found)
    return 0


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; wrong use ends the process with exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m stage1_dump", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    planning = commands.add_parser("plan", help="what would be written; writes nothing")
    planning.add_argument("--json", action="store_true", help="print the numbers as JSON")
    speed = planning.add_mutually_exclusive_group()
    speed.add_argument("--rate", type=_positive, help="records a second, for the time it takes")
    speed.add_argument(
        "--measure", type=_count, metavar="N", help="time N batches of the teacher, on this machine"
    )
    planning.add_argument("--output", metavar="FILE", help="plan for `storage verify --expect`")
    planning.set_defaults(function=plan)
    running = commands.add_parser("run", help="start or resume a dump; also under torchrun or srun")
    running.add_argument(
        "--num-gpus",
        type=int,
        default=1,
        help="ranks on this machine, one for each GPU or CPU core",
    )
    running.add_argument(
        "--max-restarts",
        type=int,
        default=3,
        metavar="N",
        help="with --num-gpus: start a rank that was killed again, N times (default: 3)",
    )
    running.add_argument(
        "--profile", action="store_true", help="say where the time went, and the bottleneck"
    )
    running.set_defaults(function=run)
    checking = commands.add_parser("check", help="run the teacher again on a sample, and compare")
    checking.add_argument(
        "--sample", type=_count, default=32, metavar="N", help="records at least (default: 32)"
    )
    checking.add_argument("--seed", type=int, default=0, metavar="S", help="draws other records")
    checking.add_argument("--json", action="store_true", help="print the report as JSON")
    checking.set_defaults(function=check)
    add_config_arguments(planning)
    add_config_arguments(running)
    add_config_arguments(checking)
    asking = commands.add_parser("status", help="done, missing and rate of a cache")
    asking.add_argument("--json", action="store_true", help="print the numbers as JSON")
    asking.add_argument("cache", help="folder or URL of the cache")
    asking.set_defaults(function=status)
    judging = commands.add_parser("evaluate", help="the teacher's COCO AP, from the cache alone")
    judging.add_argument("cache", help="folder or URL of the cache")
    judging.add_argument("--annotations", required=True, metavar="FILE", help="COCO annotations")
    judging.add_argument("--view", type=int, metavar="V", help="default: every complete view")
    judging.add_argument("--json", action="store_true", help="print the numbers as JSON")
    judging.set_defaults(function=evaluate)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit code is 0 on success and 1 on failure."""
    args = parse(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("stage1_dump").setLevel(logging.INFO)
    return run_command(lambda: args.function(args))


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"expected a number of at least 1, got {text}")
    return value


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected a number above 0, got {text}")
    return value


if __name__ == "__main__":
    sys.exit(main())
