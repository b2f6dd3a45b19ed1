"""The distilling step in a training loop of your own: no trainer, no hooks of detectron2's.

    python -m examples.own_loop CONFIG STEPS OUTPUT

CONFIG is what `python -m stage2_distill train` takes; OUTPUT a file for the student's weights.
"""

from __future__ import annotations

import sys
from itertools import islice
from pathlib import Path

import torch
from detectron2.utils.events import EventStorage

from configs.loader import load_config
from detectors import SafeCheckpointer, Setup, export_model
from detectors.building import build_detector
from detectors.command import register_data
from stage2_distill.data import build_data
from stage2_distill.distiller import build_distiller
from stage2_distill.inherit import inherit
from stage2_distill.trainer import images_and_teacher


def train(config: str, steps: int, output: Path) -> list[dict[str, float]]:
    """Train a student; every loss of every step, by name."""
    cfg = load_config(config)
    register_data(cfg)
    setup = Setup(cfg)
    torch.manual_seed(max(cfg.SEED, 0))
    # Refuses a cache of another teacher, other views, or without what the methods read.
    images, teacher = images_and_teacher(setup)
    data = build_data(setup, images, teacher.reader if teacher else None)
    student = build_detector(cfg)
    if cfg.MODEL.WEIGHTS:
        SafeCheckpointer(student).load(cfg.MODEL.WEIGHTS, checkpointables=[])
    inherit(student, setup)
    # A module: it gives losses by name, and its parameters are the student's and the methods'.
    distiller = build_distiller(setup, student, teacher).train()
    optimizer = torch.optim.AdamW(distiller.parameters(), lr=1e-4)
    found = []
    with EventStorage() as storage:  # detectron2's models write their figures there
        for batch in islice(data.loader, steps):
            losses = distiller(batch)
            optimizer.zero_grad()
            torch.stack(list(losses.values())).sum().backward()
            optimizer.step()
            storage.step()
            found.append({name: float(loss.detach()) for name, loss in losses.items()})
            print("  ".join(f"{name} {value:.3f}" for name, value in found[-1].items()))
    export_model(student, output)
    return found


if __name__ == "__main__":
    train(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))
