"""Pictures of what distillation sees: teacher boxes, student boxes and general instances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Instances
from torch import Tensor

from detectors import Setup, load_model, training_images
from detectors.detections import pack_detections, unpack_detections
from storage.schema import DETECTIONS

from .cache_check import held_images
from .data import ViewDataset
from .distiller import build_distiller
from .methods import DrawnBoxes
from .sampler import Draw
from .teacher import LiveTeacher, Teacher, TeacherSource, open_teacher

# Boxes below this score would hide the others.
_MIN_SCORE = 0.3


@torch.no_grad()
def draw_views(setup: Setup, *, count: int, folder: Path) -> Iterator[Path]:
    """Draw the first view of `count` training images, evenly spread over the dataset.

    Each picture has a panel of ground truth and the teacher's detections, one of the student's
    detections, and one of each method that has boxes to show, such as the GIs.

    Args:
        setup: of a distillation config; MODEL.WEIGHTS names the student.
        count: number of pictures.
        folder: where to write `view_<image id>.png`.

    Yields:
        The path of each picture as it is written.

    Raises:
        ValueError: TEACHER.SOURCE is none, or the weights or the cache do not fit.
    """
    cfg, family = setup.cfg, setup.family
    images = training_images(setup)
    teacher = open_teacher(setup, images)
    if teacher is None:
        raise ValueError("TEACHER.SOURCE is none: there is no teacher to show; use cache or live")
    images = held_images(images, teacher.reader)
    student = load_model(cfg)
    distiller = build_distiller(setup, student, teacher).eval()
    source = teacher.source(student_format=cfg.INPUT.FORMAT)
    dataset = ViewDataset(images, setup, teacher.reader)
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes
    folder.mkdir(parents=True, exist_ok=True)
    for position in np.linspace(0, len(images) - 1, min(count, len(images))).astype(int).tolist():
        item = dataset[Draw(position=position, view=0)]
        outputs = family.run(student, [item])
        step = distiller.step([item], source, outputs)
        shown = [method.drawn(step, method.begin(step)) for method in distiller.methods]
        path = folder / f"view_{item['image_id']}.png"
        _draw(
            path,
            _rgb(item["image"], cfg),
            truth=item["instances"],
            teacher=_confident(_detections(teacher, source, item)),
            student=_confident(family.detections(student, outputs)[0]),
            of_methods=[one for one in shown if one],
            class_names=names,
        )
        yield path


def _detections(teacher: Teacher, source: TeacherSource, item: dict[str, Any]) -> Instances:
    """The teacher's final boxes: those of the record, or what the teacher says now."""
    if isinstance(source, LiveTeacher):
        found = source.detections(item)
        rows = pack_detections(found, len(found))
    else:
        assert teacher.reader is not None
        number = teacher.reader.record_number(item["image_id"], item["view"])
        rows = torch.from_numpy(teacher.reader.read(number)[DETECTIONS].copy())
    if teacher.pair.classes is not None:
        rows = teacher.pair.classes.detections(rows)
    return unpack_detections(rows, (int(item["image"].shape[-2]), int(item["image"].shape[-1])))


def _rgb(image: Tensor, cfg: CfgNode) -> np.ndarray:
    """(H, W, 3) uint8 RGB of a (3, H, W) tensor in INPUT.FORMAT."""
    pixels = image.numpy().transpose(1, 2, 0)
    return pixels[..., ::-1] if cfg.INPUT.FORMAT == "BGR" else pixels


def _confident(found: Instances) -> Instances:
    return found[found.scores >= _MIN_SCORE].to("cpu")


def _draw(
    path: Path,
    pixels: np.ndarray,
    *,
    truth: Instances,
    teacher: Instances,
    student: Instances,
    of_methods: Sequence[Sequence[DrawnBoxes]],
    class_names: Sequence[str],
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = 2 + len(of_methods)
    figure = Figure(figsize=(4 * panels, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, *rest = figure.subplots(1, panels)
    titles = ["teacher (white: ground truth)", "student", *(one[0].title for one in of_methods)]
    for axes, title in zip((left, middle, *rest), titles, strict=True):
        axes.imshow(pixels)
        axes.set_title(title, fontsize=9)
        axes.set_axis_off()
    _add_boxes(left, truth.gt_boxes.tensor, color="white")
    for axes, found in ((left, teacher), (middle, student)):
        labels = [
            f"{class_names[c]} {s:.2f}"
            for c, s in zip(found.pred_classes.tolist(), found.scores.tolist(), strict=True)
        ]
        _add_boxes(axes, found.pred_boxes.tensor, color="tab:orange", labels=labels)
    for axes, drawn in zip(rest, of_methods, strict=True):
        for one in drawn:
            _add_boxes(axes, one.boxes, color="tab:cyan", labels=one.labels, style=one.style)
    figure.savefig(path, dpi=80, bbox_inches="tight")


def _add_boxes(
    axes: Any, boxes: Tensor, *, color: str, labels: Sequence[str] = (), style: str = "solid"
) -> None:
    """Add (n, 4) XYXY_ABS boxes with a text each, or none."""
    from matplotlib.patches import Rectangle

    for number, (x1, y1, x2, y2) in enumerate(boxes.tolist()):
        axes.add_patch(
            Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, edgecolor=color, linestyle=style)
        )
        if labels:
            axes.text(x1, y1, labels[number], fontsize=6, color=color, va="bottom")
