"""`python -m stage1_dump`: plan a teacher cache, write it, check it, and see how far it is."""

from __future__ import annotations

import argparse
import logging
import sys

from detectors.command import (
    MAX_PROCESSES,
    add_config_arguments,
    add_import_argument,
    byte_size,
    positive,
    run_command,
    whole,
)
from storage.example import add_example

from . import commands

_CONFIG = "--config-file configs/distill/r50_2x_from_r101_1x.yaml"
_CACHE = "output/cache/r101_1x_at_800"


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line; wrong use ends the process with exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m stage1_dump", description=__doc__)
    choices = parser.add_subparsers(dest="command", required=True)
    planning = choices.add_parser("plan", help="what would be written; writes nothing")
    planning.add_argument("--json", action="store_true", help="print the numbers as JSON")
    speed = planning.add_mutually_exclusive_group()
    speed.add_argument("--rate", type=positive, help="records a second, for the time it takes")
    speed.add_argument(
        "--measure", type=whole(1), metavar="N",
        help="run N batches of the teacher on this machine, for the time and the sizes",
    )  # fmt: skip
    planning.add_argument(
        "--images-per-sec", type=positive, default=100.0, metavar="N",
        help="images a second that training shows, for what it reads (default: 100)",
    )  # fmt: skip
    planning.add_argument(
        "--budget", type=byte_size, metavar="SIZE",
        help="also the presets, signals, levels and numbers of views that fit, such as 2TB",
    )  # fmt: skip
    planning.add_argument("--output", metavar="FILE", help="plan for `storage verify --expect`")
    planning.set_defaults(function=commands.plan)
    running = choices.add_parser("run", help="start or resume a dump; also under torchrun or srun")
    running.add_argument(
        "--num-gpus",
        type=whole(1, MAX_PROCESSES),
        default=1,
        help="ranks on this machine, one for each GPU or CPU core",
    )
    running.add_argument(
        "--max-restarts",
        type=whole(0),
        metavar="N",
        help="with --num-gpus: start a rank that was killed again, N times (default: 3)",
    )
    running.add_argument(
        "--profile", action="store_true", help="say where the time went, and the bottleneck"
    )
    running.set_defaults(function=commands.run)
    checking = choices.add_parser("check", help="run the teacher again on a sample, and compare")
    checking.add_argument(
        "--sample", type=whole(1), default=32, metavar="N", help="records at least (default: 32)"
    )
    checking.add_argument(
        "--seed", type=whole(0), default=0, metavar="S", help="draws other records"
    )
    checking.add_argument("--json", action="store_true", help="print the report as JSON")
    checking.set_defaults(function=commands.check)
    add_config_arguments(planning)
    add_config_arguments(running)
    add_config_arguments(checking)
    asking = choices.add_parser("status", help="done, missing and rate of a cache")
    asking.add_argument("--json", action="store_true", help="print the numbers as JSON")
    asking.add_argument("cache", help="folder or URL of the cache")
    asking.set_defaults(function=commands.status)
    judging = choices.add_parser("evaluate", help="the teacher's COCO AP, from the cache alone")
    judging.add_argument("cache", help="folder or URL of the cache")
    judging.add_argument("--annotations", required=True, metavar="FILE", help="COCO annotations")
    judging.add_argument(
        "--classes", nargs="+", default=(), metavar="NAME",
        help="all classes of the teacher, in its order; default: those of the annotations",
    )  # fmt: skip
    judging.add_argument("--view", type=whole(0), metavar="V", help="default: every complete view")
    judging.add_argument("--json", action="store_true", help="print the numbers as JSON")
    add_import_argument(judging)
    judging.set_defaults(function=commands.evaluate)
    add_example(parser, f"run {_CONFIG}")
    add_example(planning, f"--measure 20 --budget 2TB {_CONFIG} CACHE.PRESET compact")
    add_example(running, f"--num-gpus 8 {_CONFIG}")
    add_example(checking, f"--sample 64 {_CONFIG}")
    add_example(asking, _CACHE)
    annotations = "datasets/coco/annotations/instances_train2017.json"
    add_example(judging, f"{_CACHE} --annotations {annotations}")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit code is 0 on success, 1 on failure, 130 or 143 after a signal."""
    args = parse(argv)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    logging.getLogger("stage1_dump").setLevel(logging.INFO)
    return run_command(lambda: args.function(args))


if __name__ == "__main__":
    sys.exit(main())
