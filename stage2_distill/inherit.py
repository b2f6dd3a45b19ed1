"""Warm start: parts of the teacher as the student's first ones (the inheriting strategy)."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from torch import Tensor, nn

from configs.wording import listed
from detectors import Setup, load_model

logger = logging.getLogger(__name__)


def inherit(student: nn.Module, setup: Setup) -> dict[str, list[str]]:
    """Copy what `TEACHER.INHERIT` names of the teacher, where names and shapes agree.

    Of the head every tensor that fits is taken, of layers that tell classes apart the rows of the
    student's (`TEACHER.CLASSES`); of the neck only whole layers, since a lateral's
    bias is worth nothing without its weight.

    Args:
        student: is modified.
        setup: the student's; the teacher's weights are read on the CPU.

    Returns:
        Part to the names, within it, of what was copied; empty with `none`.

    Raises:
        FileNotFoundError: the teacher's weights are not here.
        ValueError: nothing fits of a part.
    """
    stated = setup.settings.teacher.inherit
    if stated == "none":
        return {}
    teacher_cfg = setup.trained_teacher_cfg.clone()
    teacher_cfg.MODEL.DEVICE = "cpu"
    teacher = load_model(teacher_cfg)
    found = {}
    for part in stated.split("+"):
        theirs = getattr(setup.teacher_family, part)(teacher).state_dict()
        if part == "head":
            theirs = _of_classes(theirs, setup)
        ours = getattr(setup.family, part)(student)
        found[part] = _copy(ours, theirs, part, stated)
    return found


def _of_classes(tensors: Mapping[str, Tensor], setup: Setup) -> Mapping[str, Tensor]:
    """The tensors of the teacher's head, as if it had the student's classes alone.

    Raises:
        ValueError: a layer that tells classes apart is not found by its name.
    """
    if setup.class_map is None:
        return tensors
    found = dict(tensors)
    for layer, values in setup.teacher_family.class_layers.items():
        # A head of the user's may hold the stock one, and its layers have longer names.
        names = [name for name in tensors if f".{name}".endswith(f".{layer}.weight")]
        if not names:
            raise ValueError(
                f"TEACHER.INHERIT {setup.settings.teacher.inherit}: the teacher's head has no "
                f"layer named {layer}, whose rows are the classes that TEACHER.CLASSES puts in the "
                "student's order; name it so, or set TEACHER.INHERIT none"
            )
        for name in names:
            found[name] = setup.class_map.rows(found[name], values)
            bias = f"{name.removesuffix('weight')}bias"
            if bias in found:
                found[bias] = setup.class_map.rows(found[bias], values)
    return found


def _copy(module: nn.Module, theirs: Mapping[str, Tensor], part: str, stated: str) -> list[str]:
    """Copy what fits into a part of the student; give its names, and log both sides."""
    ours = module.state_dict()
    rest = {n: t for n, t in ours.items() if n not in theirs or theirs[n].shape != t.shape}
    if part == "neck":
        layers = {name.rpartition(".")[0] for name in rest}
        rest = {n: t for n, t in ours.items() if any(f"{n}.".startswith(f"{x}.") for x in layers)}
    fitting = {name: theirs[name] for name in ours if name not in rest}
    unlike = [_difference(name, ours[name], theirs.get(name)) for name in rest]
    if not fitting:
        raise ValueError(
            f"TEACHER.INHERIT {stated}: no tensor of the teacher's {part} fits the student's: "
            f"{listed(unlike, between='; ') or 'there is none'}; give both the same "
            f"FPN.OUT_CHANNELS, or set TEACHER.INHERIT {'head' if part == 'neck' else 'none'}"
        )
    module.load_state_dict({**ours, **fitting})
    logger.info(
        "copied %d of %d tensors of the teacher's %s: %s",
        *(len(fitting), len(ours), part, listed(fitting, between="; ")),
    )
    if unlike:
        logger.info(
            "not copied, %d tensors of the student's %s: %s",
            *(len(unlike), part, listed(unlike, between="; ")),
        )
    return list(fitting)


def _difference(name: str, ours: Tensor, theirs: Tensor | None) -> str:
    if theirs is not None and theirs.shape == ours.shape:
        return f"{name} (its layer differs)"
    found = "has none" if theirs is None else str(tuple(theirs.shape))
    return f"{name}: student {tuple(ours.shape)}, teacher {found}"
