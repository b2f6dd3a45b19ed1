"""Warm start: the teacher's head as the student's first one (the inheriting strategy)."""

from __future__ import annotations

import logging

from torch import nn

from detectors import Setup, load_model

logger = logging.getLogger(__name__)


def inherit_head(student: nn.Module, setup: Setup) -> list[str]:
    """Copy every tensor of the teacher's head into the student's that has its name and shape.

    Args:
        student: is modified.
        setup: the student's; the teacher's weights are read on the CPU.

    Returns:
        Names of what was copied, within the head.

    Raises:
        FileNotFoundError: the teacher's weights are not here.
        ValueError: nothing fits.
    """
    teacher_cfg = setup.trained_teacher_cfg.clone()
    teacher_cfg.defrost()
    teacher_cfg.MODEL.DEVICE = "cpu"
    theirs = setup.teacher_family.head(load_model(teacher_cfg)).state_dict()
    head = setup.family.head(student)
    ours = head.state_dict()
    fitting = {k: v for k, v in theirs.items() if k in ours and ours[k].shape == v.shape}
    rest = [
        f"{name}: student {tuple(tensor.shape)}, teacher "
        + (f"{tuple(theirs[name].shape)}" if name in theirs else "has none")
        for name, tensor in ours.items()
        if name not in fitting
    ]
    if not fitting:
        raise ValueError(
            f"TEACHER.INHERIT head: no tensor of the teacher's head fits the student's: "
            f"{'; '.join(rest)}; give both the same FPN.OUT_CHANNELS, or set TEACHER.INHERIT none"
        )
    head.load_state_dict({**ours, **fitting})
    logger.info("copied from the teacher's head: %s", ", ".join(fitting))
    if rest:
        logger.info("not copied, shapes differ: %s", "; ".join(rest))
    return list(fitting)
