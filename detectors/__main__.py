"""`python -m detectors`: train and evaluate plain detectors, teachers and baseline students."""

from __future__ import annotations

import argparse
import sys

from storage.example import add_example

from .command import add_job_arguments, read_config, run_command


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog="python -m detectors", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    add_job_arguments(
        training := commands.add_parser("train", help="train a teacher or a baseline student")
    )
    training.add_argument("--eval-only", action="store_true", help="evaluate MODEL.WEIGHTS instead")
    training.set_defaults(json=False)
    add_job_arguments(
        evaluation := commands.add_parser("eval", help="COCO evaluation"), resumes=False
    )
    evaluation.add_argument("--json", action="store_true", help="print the result as JSON")
    evaluation.set_defaults(eval_only=True)
    example = "--config-file configs/teacher/retinanet_r101_1x.yaml"
    add_example(parser, f"train {example}")
    add_example(training, f"--num-gpus 8 {example}")
    add_example(
        evaluation, f"{example} MODEL.WEIGHTS output/teacher/retinanet_r101_1x/model_final.pth"
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit code is 0 on success and 1 on failure."""
    args = parse(argv)

    def command() -> int:
        from configs.stock_keys import EVAL, TRAIN

        from .jobs import evaluate, train
        from .launching import launch_job

        if args.eval_only and args.resume:
            raise ValueError("--resume: MODEL.WEIGHTS is evaluated; leave it out, or --eval-only")
        cfg = read_config(args, EVAL if args.eval_only else TRAIN)
        cfg.freeze()
        launch_job(evaluate if args.eval_only else train, cfg, args)
        return 0

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
