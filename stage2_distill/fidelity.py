"""Fidelity: does a cache teach a student the same as the teacher itself, live and in float32?

Both give their outputs for the same views and the same student; then three things are compared:
what a method would choose under each, such as general instances, every distillation loss at the
live teacher's choice, and the gradient of the losses in every weight of the student and of the
methods' layers. It matters on a trained teacher, and for a student at any stage: one at its
beginning disagrees with the teacher everywhere, a trained one in places that a coarse code could
blur.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from detectors import (
    DetectorFamily,
    SafeCheckpointer,
    Setup,
    training_images,
    weights_path,
)
from detectors.arithmetic import arithmetic
from detectors.building import build_detector
from detectors.checkpoint import METHODS
from storage.progress import Progress

from .cache_check import held_images
from .data import ViewDataset
from .distiller import Distiller
from .fidelity_result import LIMITS, Fidelity, StudentFidelity
from .inherit import inherit
from .methods import TrainedLayers, build_methods, chosen_methods
from .sampler import Draw
from .teacher import Teacher, TeacherSource, open_teacher
from .trainer import EXPORTED_NAME

logger = logging.getLogger(__name__)

INITIAL = "initial"
# What detectron2 calls the checkpoint at the end of training.
FINAL_NAME = "model_final.pth"
# Losses that sum up to less are compared with this instead: their ratio would be noise.
LOSS_FLOOR = 1e-3
# An iteration in which no method's weights are still rising.
_LATE = 10**9


def measure(
    setup: Setup, students: Sequence[str], num_views: int, *, all_levels: bool = False
) -> Fidelity:
    """Compare the cache of a config with its live teacher.

    Args:
        setup: of a distillation config, its data registered; the random state is that of training.
        students: checkpoints that training wrote, or exported students (see `_load_layers`);
            `initial` is the student as training begins with it.
        num_views: spread evenly over the images and their views; all if there are fewer.
        all_levels: the live teacher has all its levels, whatever CACHE.LEVELS leaves out; then no
            limits are set.

    Raises:
        FileNotFoundError: no such cache, weights or checkpoint.
        ValueError: the cache or a checkpoint does not fit the config, or `all_levels` a method.
    """
    cfg = setup.cfg
    if not any(method.weights for method, _ in chosen_methods(setup)):
        raise ValueError(
            f"DISTILL.METHODS {setup.settings.distill.methods}: no method of these has a loss, so"
            " there is nothing to compare; name one that has, such as gid"
        )
    images = training_images(setup)
    live, cached = teachers = _teachers(setup, images, all_levels=all_levels)
    assert cached.reader is not None
    images = held_images(images, cached.reader)
    sources = [one.source(student_format=cfg.INPUT.FORMAT) for one in (live, cached)]
    draws = _spread(len(images), setup.settings.views.num, num_views)
    dataset = ViewDataset(images, setup, cached.reader)
    size = cfg.SOLVER.IMS_PER_BATCH
    batches = [draws[start : start + size] for start in range(0, len(draws), size)]
    found = []
    total = len(students) * len(batches)
    # Without TF32 in the student too: its own rounding would pass for the cache's.
    exact = arithmetic("float32", torch.device(cfg.MODEL.DEVICE))
    with exact, Progress("fidelity", total=total, unit="batches") as progress:
        for student in students:
            distillers = _load_student(setup, student, teachers)
            comparison = _Comparison(distillers, sources, setup.family)
            for batch in progress.over(batches):
                comparison.add([dataset[draw] for draw in batch])
            found.append(comparison.result(student))
    manifest = cached.reader.manifest
    limits = LIMITS.get((manifest.preset, setup.settings.cache.dtype))
    return Fidelity(
        cache=str(cached.reader.location),
        preset=manifest.preset,
        views=len(draws),
        limits=limits if live.pair.levels == cached.pair.levels else None,
        students=tuple(found),
    )


def checkpoints_of(folder: Path) -> list[str]:
    """Return the student's stages: its beginning, then the checkpoints half way and at the end.

    Where only the end was kept, that alone; the exported student stands for a checkpoint that is
    not there any more.

    Raises:
        FileNotFoundError: training has left no student in the folder.
    """
    periodic = sorted(folder.glob("model_*[0-9].pth"))
    half = periodic[(len(periodic) - 1) // 2 :][:1]
    ends = [folder / FINAL_NAME, *periodic[-1:], folder / EXPORTED_NAME]
    end = [path for path in ends if path.is_file()][:1]
    if not end:
        raise FileNotFoundError(
            f"{folder}: no student (model_*.pth, {EXPORTED_NAME}); train one first, with"
            " SOLVER.CHECKPOINT_PERIOD at half of its steps, or name checkpoints with --student"
        )
    return [INITIAL, *dict.fromkeys(map(str, (*half, *end)))]


def _teachers(
    setup: Setup, images: list[dict[str, Any]], *, all_levels: bool = False
) -> tuple[Teacher, Teacher]:
    """The live and the cached teacher of one config, the live one with all its levels if asked."""
    stated = setup.settings.teacher
    whole = setup
    if all_levels:
        cfg = setup.cfg.clone()
        cfg.merge_from_list(["CACHE.LEVELS", ()])
        whole = Setup(cfg)
    # The live one is the reference, whatever the dump computed in.
    live = open_teacher(whole, images, replace(stated, source="live", precision="float32"))
    cached = open_teacher(setup, images, replace(stated, source="cache"))
    assert live is not None and cached is not None
    return live, cached


def _spread(num_images: int, num_views: int, count: int) -> list[Draw]:
    """Choose records evenly over (image, view), all if there are fewer than `count`."""
    total = num_images * num_views
    chosen = np.unique(np.linspace(0, total - 1, min(count, total)).round().astype(int))
    return [Draw(position=one // num_views, view=one % num_views) for one in chosen.tolist()]


def _load_student(
    setup: Setup, student: str, teachers: tuple[Teacher, Teacher]
) -> tuple[Distiller, Distiller]:
    """Build a student with the methods' layers, in training mode, as training would have it.

    Returns:
        It under each teacher; they are one where both teachers have the same levels.
    """
    cfg = setup.cfg
    live, cached = teachers
    torch.manual_seed(max(cfg.SEED, 0))
    detector = build_detector(cfg)
    distiller = _build_distiller(detector, live)
    if student != INITIAL:
        saved = _load_weights(detector, student, strict=True)
        _load_layers(distiller, saved.get(METHODS), student)
    else:
        if cfg.MODEL.WEIGHTS:
            _load_weights(detector, cfg.MODEL.WEIGHTS, strict=False)
        inherit(detector, setup)
    if live.pair.levels == cached.pair.levels:
        return distiller.train(), distiller
    other = _build_distiller(detector, cached)
    try:
        other.trained_layers.load_state_dict(distiller.trained_layers.state_dict())
    except ValueError as error:
        raise ValueError(
            f"{str(error).partition(':')[0]}, one for each level: where the live teacher has more "
            "levels than the cache, such methods cannot be compared; leave them out of "
            "DISTILL.METHODS"
        ) from error
    return distiller.train(), other.train()


def _build_distiller(detector: nn.Module, teacher: Teacher) -> Distiller:
    """A student under a teacher whose outputs are handed in."""
    pair = teacher.pair
    device = pair.setup.cfg.MODEL.DEVICE
    methods = [one.to(device) for one in build_methods(pair)]
    return Distiller(detector, pair.setup, pair=pair, methods=methods)


def _load_weights(detector: nn.Module, name: str, *, strict: bool) -> dict[str, Any]:
    """Load a checkpoint into a detector; return what else is in it."""
    checkpointer = SafeCheckpointer(detector, strict=strict)
    found: dict[str, Any] = checkpointer.load(weights_path(name), checkpointables=[])
    return found


def _load_layers(distiller: Distiller, saved: dict[str, Any] | None, student: str) -> None:
    """Load the layers that the methods were trained with.

    An exported student holds none: then those of the last checkpoint beside it. A method that it
    was not trained with is compared under the layers that training begins with, and a warning says
    so.
    """
    beside = Path(student).with_name(FINAL_NAME)
    if saved is None and "://" not in student and beside.is_file():
        saved = SafeCheckpointer(nn.Identity())._torch_load(str(beside)).get(METHODS)
        logger.info("%s: the methods' layers are those of %s", student, beside)
    saved = saved or {}
    layers = {one.name: one for one in distiller.methods if one.state_dict()}
    untrained = [name for name in layers if name not in saved]
    if untrained:
        logger.warning(
            "%s, and %s beside it, hold no layers of the methods %s: they are compared under "
            "untrained ones, as training begins",
            student,
            FINAL_NAME,
            ", ".join(untrained),
        )
    trained = {name: one for name, one in layers.items() if name in saved}
    TrainedLayers(trained).load_state_dict({name: saved[name] for name in trained})


class _Comparison:
    """Sums over batches of what one student sees of two teachers."""

    def __init__(
        self,
        distillers: tuple[Distiller, Distiller],
        sources: Sequence[TeacherSource],
        family: DetectorFamily,
    ) -> None:
        """Args: the student under each teacher, the live one first; these; the student's family."""
        self._distillers = distillers
        self._sources = sources
        self._family = family
        self._instances = self._matched = 0
        # By loss, of every batch.
        self._live: dict[str, list[float]] = {}
        self._difference: dict[str, list[float]] = {}
        # By method, dot products of the gradients: live with cached, and each with itself.
        self._dots: dict[str, Tensor] = {}

    def add(self, batch: list[dict[str, Any]]) -> None:
        """Compare on one batch of the loader's items."""
        ours, theirs = self._distillers
        outputs = self._family.run(ours.detector, batch)
        step, other = (
            one.step(batch, source, outputs, iteration=_LATE)
            for one, source in zip(self._distillers, self._sources, strict=True)
        )
        positive = ours.positive(step, outputs)
        # Where the places are others, so are the labels of places.
        positive_of_other = positive if theirs is ours else theirs.positive(other, outputs)
        for method, twin in zip(ours.methods, theirs.methods, strict=True):
            begun, begun_other = method.begin(step), twin.begin(other)
            agreed = method.agreement(begun, begun_other)
            if agreed is not None:
                self._instances += agreed[0]
                self._matched += agreed[1]
            chosen = method.assigned(step, begun, positive)
            # At the live teacher's choice, which says nothing of other places.
            chosen_other = (
                chosen if twin is method else twin.assigned(other, begun_other, positive_of_other)
            )
            self._compare(
                method.name,
                method.weighted(step, method(step, chosen)),
                twin.weighted(other, twin(other, chosen_other)),
            )

    def _compare(self, method: str, live: dict[str, Tensor], cached: dict[str, Tensor]) -> None:
        """Add up the losses of one method under the two teachers, and their gradients."""
        for name, of_live in live.items():
            self._live.setdefault(name, []).append(float(of_live.detach()))
            difference = float((cached[name] - of_live).detach())
            self._difference.setdefault(name, []).append(difference)
        if live:
            ours, theirs = (
                _gradient(losses, distiller)
                for losses, distiller in zip((live, cached), self._distillers, strict=True)
            )
            dots = torch.stack([ours @ theirs, ours @ ours, theirs @ theirs]).cpu()
            self._dots[method] = self._dots.get(method, 0.0) + dots

    def result(self, student: str) -> StudentFidelity:
        """What the batches add up to."""
        sums = {name: np.array(values) for name, values in self._live.items()}
        apart = {name: np.array(values) for name, values in self._difference.items()}
        return StudentFidelity(
            student=student,
            instances=self._instances,
            matched=self._matched / self._instances if self._instances else None,
            errors={
                name: float(abs(one.sum()) / max(abs(sums[name].sum()), LOSS_FLOOR))
                for name, one in apart.items()
            },
            mean_errors={
                name: float((abs(one) / np.maximum(abs(sums[name]), LOSS_FLOOR)).mean())
                for name, one in apart.items()
            },
            cosines={name: _cosine(*dots.tolist()) for name, dots in self._dots.items()},
        )


def _gradient(losses: dict[str, Tensor], distiller: Distiller) -> Tensor:
    """Gradient of the sum in every weight of the student and the methods, one float64 vector."""
    weights = [one for one in distiller.parameters() if one.requires_grad]
    total = torch.stack(list(losses.values())).sum()
    found = torch.autograd.grad(total, weights, retain_graph=True, materialize_grads=True)
    return torch.cat([one.flatten().double() for one in found])


def _cosine(product: float, live: float, cached: float) -> float | None:
    """Of two gradients, from their dot products with each other and with themselves.

    None where both are zero; one of zero agrees with no other.
    """
    return None if live == cached == 0 else product / max((live * cached) ** 0.5, 1e-300)
