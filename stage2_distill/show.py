"""Pictures of what distillation sees: teacher boxes, student boxes and general instances."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from torch import Tensor

from dataset.drawing import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
    YELLOW,
    BoxGroup,
    Panel,
    draw_panels,
)
from detectors import Setup, load_model, some_places, training_images
from detectors.detections import unpack_detections
from storage.schema import DETECTIONS

from .cache_check import held_images
from .data import ViewDataset
from .distiller import build_distiller
from .methods import DrawnBoxes
from .sampler import Draw
from .teacher import LiveTeacher, Teacher, TeacherSource, open_teacher

_TRUTH, _TEACHER, _BASELINE, _STUDENT = GREEN, ORANGE, PURPLE, SKY
# Of the kinds of a method's boxes, in their order.
_KINDS = (YELLOW, BLUE, VERMILLION, BLACK)


@torch.no_grad()
def draw_views(
    setup: Setup,
    *,
    count: int,
    folder: Path,
    image_ids: Sequence[int] = (),
    min_score: float = 0.3,
    baseline: str | None = None,
) -> Iterator[Path]:
    """Draw the first view of some training images.

    Each picture has a panel of ground truth, of the teacher's and of the student's detections, and
    of each method that has boxes to show, such as the GIs.

    Args:
        setup: of a distillation config; MODEL.WEIGHTS names the student.
        count: number of pictures, evenly spread over the dataset, where no ids are given.
        folder: where to write `view_<image id>.png`.
        image_ids: of the images.
        min_score: detections below it would hide the others.
        baseline: weights of another student of the same config, whose detections get a panel too.

    Yields:
        The path of each picture as it is written.

    Raises:
        ValueError: TEACHER.SOURCE is none, the weights or the cache do not fit, or no image has one
            of the ids.
    """
    cfg, family = setup.cfg, setup.family
    images = training_images(setup)
    teacher = open_teacher(setup, images)
    if teacher is None:
        raise ValueError("TEACHER.SOURCE is none: there is no teacher to show; use cache or live")
    images = held_images(images, teacher.reader)
    places = some_places(images, count=count, image_ids=image_ids)
    student = load_model(cfg)
    other = load_model(_with_weights(cfg, baseline)) if baseline else None
    distiller = build_distiller(setup, student, teacher).eval()
    source = teacher.source(student_format=cfg.INPUT.FORMAT)
    dataset = ViewDataset(images, setup, teacher.reader)
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes
    rows = cfg.TEST.DETECTIONS_PER_IMAGE

    for place in places:
        item = dataset[Draw(position=place, view=0)]
        outputs = family.run(student, [item])
        step = distiller.step([item], source, outputs)
        positive = distiller.positive(step, outputs)
        found = [("teacher", _TEACHER, _detections(teacher, source, item))]
        if other:
            of_other = family.detections(other, family.run(other, [item]), rows)[0]
            found.append(("baseline", _BASELINE, _unpacked(of_other, item)))
        of_student = family.detections(student, outputs, rows)[0]
        found.append(("student", _STUDENT, _unpacked(of_student, item)))
        pixels = _rgb(item["image"], cfg)
        panels = [
            _truth_panel(pixels, item, names),
            *(_detected_panel(pixels, *one, names, min_score) for one in found),
            *(
                _method_panel(pixels, drawn)
                for method in distiller.methods
                if (drawn := method.drawn(step, method.begin(step), positive))
            ),
        ]
        path = folder / f"view_{item['image_id']}.png"
        # Three in a row at most, four as two and two.
        draw_panels(path, panels, columns=2 if len(panels) == 4 else min(3, len(panels)))
        yield path


def _with_weights(cfg: CfgNode, weights: str) -> CfgNode:
    other = cfg.clone()
    other.defrost()
    other.MODEL.WEIGHTS = weights
    return other


def _detections(teacher: Teacher, source: TeacherSource, item: dict[str, Any]) -> Instances:
    """The teacher's final boxes: those of the record, or what the teacher says now."""
    if isinstance(source, LiveTeacher):
        rows = source.detections(item)
    else:
        assert teacher.reader is not None
        number = teacher.reader.record_number(item["image_id"], item["view"])
        rows = torch.from_numpy(teacher.reader.read(number)[DETECTIONS].copy())
    if teacher.pair.classes is not None:
        rows = teacher.pair.classes.detections(rows)
    return _unpacked(rows, item)


def _unpacked(rows: Tensor, item: dict[str, Any]) -> Instances:
    height, width = item["image"].shape[-2:]
    return unpack_detections(rows, (int(height), int(width)))


def _rgb(image: Tensor, cfg: CfgNode) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a (3, H, W) tensor in INPUT.FORMAT."""
    pixels = image.numpy().transpose(1, 2, 0)
    return pixels[..., ::-1] if cfg.INPUT.FORMAT == "BGR" else pixels


def _truth_panel(pixels: np.ndarray, item: dict[str, Any], names: Sequence[str]) -> Panel:
    truth = item["instances"]
    group = BoxGroup(
        kind="ground truth",
        boxes=truth.gt_boxes.tensor,
        labels=[names[one] for one in truth.gt_classes.tolist()],
        colour=_TRUTH,
    )
    title = f"image {item['image_id']}, ground truth: {len(truth)} objects"
    return Panel(title=title, pixels=pixels, groups=[group])


def _detected_panel(
    pixels: np.ndarray,
    kind: str,
    colour: str,
    found: Instances,
    names: Sequence[str],
    min_score: float,
) -> Panel:
    found = found[found.scores >= min_score].to("cpu")
    found_classes = zip(found.pred_classes.tolist(), found.scores.tolist(), strict=True)
    group = BoxGroup(
        kind=kind,
        boxes=found.pred_boxes.tensor,
        labels=[f"{names[number]} {score:.2f}" for number, score in found_classes],
        colour=colour,
    )
    title = f"{kind}: {len(found)} boxes of score {min_score:g} or more"
    return Panel(title=title, pixels=pixels, groups=[group])


def _method_panel(pixels: np.ndarray, drawn: Sequence[DrawnBoxes]) -> Panel:
    kinds = dict.fromkeys(one.kind for one in drawn)
    colours = dict(zip(kinds, itertools.cycle(_KINDS), strict=False))
    groups = [
        BoxGroup(
            kind=one.kind,
            boxes=one.boxes,
            labels=one.labels,
            colour=colours[one.kind],
            style=one.style,
        )
        for one in drawn
    ]
    return Panel(title=drawn[0].title, pixels=pixels, groups=groups)
