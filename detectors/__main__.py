"""`python -m detectors`: train and evaluate plain detectors, teachers and baseline students."""

from __future__ import annotations

import argparse
import sys

from configs.loader import load_config

from .command import add_job_arguments, run_command


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m detectors", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add_job_arguments(
        training := commands.add_parser("train", help="train a teacher or a baseline student")
    )
    training.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS instead")
    training.set_defaults(json=False)
    add_job_arguments(evaluation := commands.add_parser("eval", help="COCO evaluation"))
    evaluation.add_argument("--json", action="store_true", help="print the result as JSON")
    evaluation.set_defaults(eval_only=True)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit code is 0 on success and 1 on failure."""
    args = parse(argv)

    def command() -> int:
        from .jobs import evaluate, train
        from .launching import launch_job

        cfg = load_config(args.config_file, args.opts)
        cfg.freeze()
        launch_job(evaluate if args.eval_only else train, cfg, args)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
