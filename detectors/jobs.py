"""What the commands run on every rank: training and evaluation of a plain detector.

A module of its own, because a spawned rank imports the job by name and cannot import `__main__`.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import redirect_stdout

from detectron2.config import CfgNode
from detectron2.utils import comm

from .checkpoint import load_model
from .command import set_up
from .evaluate import evaluate as evaluate_model
from .evaluate import summary
from .failures import in_one_line
from .run_record import train_recorded
from .trainer import Trainer


@in_one_line
def train(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Train the detector of a config."""
    train_recorded(Trainer, cfg, args)


@in_one_line
def evaluate(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Evaluate MODEL.WEIGHTS on DATASETS.TEST and print the result."""
    # The log and the evaluator print; with --json, standard output is for the result alone.
    with redirect_stdout(sys.stderr if args.json else sys.stdout):
        set_up(cfg, args, use=("TEST",))
        results = evaluate_model(cfg, load_model(cfg))
    if comm.is_main_process():
        print(json.dumps(results) if args.json else summary(results))
