"""`python -m stage2_distill`: write first configs for a data set, train a student from the teacher
cache, or several and compare them, look at what they see, and measure how far the cache is from
the teacher itself.
"""

from __future__ import annotations

import argparse
import sys

from detectors.command import (
    MAX_PROCESSES,
    add_config_arguments,
    add_image_arguments,
    add_job_arguments,
    number,
    read_config,
    run_command,
    whole,
)
from storage.example import add_example

from .init.arguments import add_init_arguments


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m stage2_distill", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    beginning = commands.add_parser("init", help="write first configs for a data folder")
    add_init_arguments(beginning)
    training = commands.add_parser("train", help="train a student")
    add_job_arguments(training)
    showing = commands.add_parser("show", help="draw boxes and GIs on views, as PNG")
    add_config_arguments(showing)
    add_image_arguments(showing, "--count", default=8)
    showing.add_argument(
        "--score", type=number(at_most=1), default=0.3, metavar="S",
        help="draw detections of this score and above (default: 0.3)",
    )  # fmt: skip
    showing.add_argument(
        "--baseline", metavar="FILE",
        help="weights of another student of this config, such as one trained on ground truth "
        "alone, to draw beside",
    )  # fmt: skip
    showing.add_argument("--output", help="folder for the pictures; default: OUTPUT_DIR")
    comparing = commands.add_parser("fidelity", help="compare the cache with the live teacher")
    add_config_arguments(comparing)
    comparing.add_argument(
        "--student", action="append", dest="students", metavar="FILE",
        help="a checkpoint of stage2_distill train, or `initial`; may be given several times; "
        "default: `initial`, and those half way and at the end in OUTPUT_DIR",
    )  # fmt: skip
    comparing.add_argument(
        "--views", type=whole(1), default=64, help="number of views (default: 64)"
    )
    comparing.add_argument(
        "--all-levels", action="store_true",
        help="the live teacher with all its levels: what leaving some out of CACHE.LEVELS changes",
    )  # fmt: skip
    comparing.add_argument("--json", action="store_true", help="print JSON")
    sweeping = commands.add_parser(
        "sweep",
        help="train several configs with several seeds, and compare them in a table",
    )
    add_sweep_arguments(sweeping)
    showing.set_defaults(num_gpus=1, num_machines=1, machine_rank=0, dist_url=None)
    config = "--config-file configs/distill/r50_2x_from_r101_1x.yaml"
    student = "MODEL.WEIGHTS output/distill/r50_2x_from_r101_1x/student_final.pth"
    add_example(parser, f"train {config}")
    add_example(beginning, "--data datasets/mine --output configs/mine")
    add_example(training, f"--num-gpus 8 {config} OUTPUT_DIR output/distill/second")
    add_example(showing, f"--count 8 --output pictures {config} {student}")
    add_example(comparing, f"--views 64 {config}")
    add_example(sweeping, f"--runs configs/sweeps/methods.yaml --seeds 3 {config}")
    return parser.parse_args(argv)


def add_sweep_arguments(parser: argparse.ArgumentParser) -> None:
    """What `sweep` takes beside the config."""
    add_config_arguments(parser)
    parser.add_argument(
        "--runs", required=True, metavar="FILE",
        help="YAML of named rows of overrides; the first one is what the others are compared with",
    )  # fmt: skip
    parser.add_argument(
        "--seeds", type=whole(1, 1000), default=3,
        help="number of seeds of each row, from 1 (default: 3)",
    )  # fmt: skip
    parser.add_argument(
        "--jobs", type=whole(1, MAX_PROCESSES),
        help="runs at a time; default: one for each GPU, or 1 on a CPU",
    )  # fmt: skip
    parser.add_argument(
        "--output", metavar="FOLDER", help="default: OUTPUT_DIR/sweep_<name of the runs file>"
    )


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit code is 0 on success and 1 on failure."""
    args = parse(argv)

    def command() -> int:
        from detectors.launching import launch_job

        from . import jobs

        if args.command == "init":
            from .init.command import write_configs

            return write_configs(args)
        if args.command == "sweep":
            from .sweep import sweep

            return sweep(args)
        cfg = read_config(args, f"stage2_distill {args.command}")
        cfg.freeze()
        if args.command == "fidelity":
            return jobs.fidelity(cfg, args)
        launch_job(getattr(jobs, args.command), cfg, args)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
