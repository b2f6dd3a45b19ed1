"""What the commands run on every rank.

A module of its own, because a spawned rank imports the job by name and cannot import `__main__`.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from detectron2.config import CfgNode

from detectors.command import set_up

from .show import draw_views
from .trainer import DistillTrainer


def train(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Train a student."""
    set_up(cfg, args)
    trainer = DistillTrainer(cfg)
    trainer.resume_or_load(resume=args.resume)
    trainer.train()


def show(cfg: CfgNode, args: argparse.Namespace) -> None:
    """Draw teacher boxes, student boxes and GIs; print the path of every picture."""
    set_up(cfg, args)
    for path in draw_views(cfg, count=args.count, folder=Path(args.output or cfg.OUTPUT_DIR)):
        print(path)
