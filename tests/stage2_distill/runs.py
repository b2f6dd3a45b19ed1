"""Training runs in this process, and what they log."""

from pathlib import Path
from typing import Any

import pytest
import torch

from configs.loader import load_config
from detectors import Setup, training_images
from detectors.command import register_data
from stage2_distill.data import ViewDataset
from stage2_distill.sampler import Draw
from stage2_distill.teacher import Teacher, TeacherSource, open_teacher
from stage2_distill.trainer import DistillTrainer

OWN_LOSSES = {"loss_cls", "loss_box_reg"}
GID_LOSSES = {
    "loss_gid_feature",
    "loss_gid_relation",
    "loss_gid_response_cls",
    "loss_gid_response_reg",
}


def build(path: Path, *overrides: Any) -> DistillTrainer:
    """Build what the command trains."""
    cfg = load_config(str(path), [str(x) for x in overrides])
    register_data(cfg)
    torch.manual_seed(5)
    return DistillTrainer(cfg)


def teacher_and_view(path: Path, image: int) -> tuple[Teacher, TeacherSource, dict[str, Any]]:
    """The teacher of a config, ready to give outputs, and view 0 of an image by its place."""
    cfg = load_config(str(path))
    register_data(cfg)
    setup = Setup(cfg)
    images = training_images(setup)
    teacher = open_teacher(setup, images)
    assert teacher is not None
    item = ViewDataset(images, setup, teacher.reader)[Draw(position=image, view=0)]
    return teacher, teacher.source(student_format=cfg.INPUT.FORMAT), item


def train(path: Path, *overrides: Any, resume: bool = False) -> DistillTrainer:
    """Train in this process as the command does."""
    trainer = build(path, *overrides)
    trainer.resume_or_load(resume=resume)
    trainer.train()
    return trainer


def train_until(path: Path, stop: int, *overrides: Any) -> None:
    """Train, six iterations by default, but break off before `stop`, as a crash would."""

    class Crash(Exception):
        pass

    trainer = build(path, "SOLVER.MAX_ITER", 6, *overrides)
    step = trainer.run_step

    def run_step() -> None:
        if trainer.iter == stop:
            raise Crash
        step()

    trainer.run_step = run_step  # type: ignore[method-assign]
    with pytest.raises(Crash):
        trainer.train()


def losses_of(trainer: DistillTrainer) -> dict[str, list[float]]:
    """Every loss of every iteration of this run; what it was resumed from is left out."""
    start = trainer.start_iter
    return {
        name: [value for value, step in trainer.storage.history(name).values() if step >= start]
        for name in trainer.storage.histories()
        if name.startswith("loss_")
    }
