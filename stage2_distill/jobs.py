"""What the commands run on every rank.

A module of its own, because a spawned rank imports the job by name and cannot import `__main__`.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path

from detectron2.config import CfgNode

from detectors import Setup
from detectors.command import register_data, set_up
from detectors.datasets import require_fit
from detectors.failures import in_one_line
from detectors.launching import check_device, use_device
from detectors.run_record import train_recorded
from storage.progress import Progress

from .fidelity import checkpoints_of, measure
from .show import draw_views
from .trainer import DistillTrainer

logger = logging.getLogger(__name__)


@in_one_line
def train(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Train a student."""
    train_recorded(DistillTrainer, cfg, args)


@in_one_line
def show(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Draw teacher boxes, student boxes and GIs; print the path of every picture."""
    set_up(cfg, args, use=("TRAIN",))
    paths = draw_views(
        Setup(cfg),
        count=args.count,
        folder=Path(args.output or cfg.OUTPUT_DIR),
        image_ids=args.image_ids,
        min_score=args.score,
        baseline=args.baseline,
    )
    with Progress("pictures", total=len(args.image_ids) or args.count, unit="views") as progress:
        for path in progress.over(paths):
            progress.say(str(path), file=sys.stdout)


def fidelity(cfg: CfgNode, args: argparse.Namespace) -> int:
    """Print how far the cache is from the live teacher; 1 where that is too far."""
    check_device(cfg.MODEL.DEVICE)
    use_device(cfg.MODEL.DEVICE)
    for warning in register_data(cfg, use=("TRAIN",)):
        logger.warning("%s", warning)
    require_fit(cfg, ("TRAIN",))
    students = args.students or checkpoints_of(Path(cfg.OUTPUT_DIR))
    found = measure(Setup(cfg), students, args.views, all_levels=args.all_levels)
    for line in [json.dumps(found.to_json())] if args.json else found.lines():
        print(line)
    return 0 if found.reached else 1
