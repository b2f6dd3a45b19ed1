"""Pictures of what distillation sees: teacher boxes, student boxes and general instances."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.structures import Boxes, Instances
from torch import Tensor

from detectors import Setup, load_model, training_images
from storage.schema import DETECTIONS

from .cache_check import held_images
from .data import ViewDataset
from .gism import GeneralInstances, select
from .sampler import Draw
from .teacher import LiveTeacher, Teacher, TeacherSource, open_teacher

# Boxes below this score would hide the others.
_MIN_SCORE = 0.3


@torch.no_grad()
def draw_views(setup: Setup, *, count: int, folder: Path) -> Iterator[Path]:
    """Draw the first view of `count` training images, evenly spread over the dataset.

    Each picture has three panels: ground truth and the teacher's detections, the student's
    detections, and the GIs (solid: the teacher's box, dashed: the student's).

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
    source = teacher.source(student_format=cfg.INPUT.FORMAT)
    dataset = ViewDataset(images, setup, teacher.reader)
    names = MetadataCatalog.get(cfg.DATASETS.TRAIN[0]).thing_classes
    folder.mkdir(parents=True, exist_ok=True)
    for position in np.linspace(0, len(images) - 1, min(count, len(images))).astype(int).tolist():
        item = dataset[Draw(position=position, view=0)]
        outputs = family.run(student, [item]).on_levels(teacher.stored.kept)
        given = source.outputs([item], outputs.level_sizes, outputs.logits.device)
        instances = select(
            given,
            outputs.logits,
            outputs.deltas,
            anchors=outputs.anchors,
            image_sizes=outputs.image_sizes,
            centerness=outputs.centres(),
            box_transform=family.box_transform(student),
            config=setup.settings.gid,
        )
        path = folder / f"view_{item['image_id']}.png"
        _draw(
            path,
            _rgb(item["image"], cfg),
            truth=item["instances"],
            teacher=_confident(_detections(teacher, source, item)),
            student=_confident(family.detections(student, outputs)[0]),
            instances=instances.of_image(0),
            class_names=names,
        )
        yield path


def _detections(teacher: Teacher, source: TeacherSource, item: dict[str, Any]) -> Instances:
    """The teacher's final boxes: those of the record, or what the teacher says now."""
    if isinstance(source, LiveTeacher):
        return source.detections(item)
    assert teacher.reader is not None
    number = teacher.reader.record_number(item["image_id"], item["view"])
    rows = torch.from_numpy(teacher.reader.read(number)[DETECTIONS].copy())
    rows = rows[rows[:, 4] >= 0]  # the others are not used
    size = (int(item["image"].shape[-2]), int(item["image"].shape[-1]))
    boxes, scores, classes = Boxes(rows[:, :4]), rows[:, 4], rows[:, 5].long()
    return Instances(size, pred_boxes=boxes, scores=scores, pred_classes=classes)


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
    instances: GeneralInstances,
    class_names: Sequence[str],
) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    left, middle, right = figure.subplots(1, 3)
    for axes, title in (
        (left, "teacher (white: ground truth)"),
        (middle, "student"),
        (right, "general instances (solid: teacher's box, dashed: student's)"),
    ):
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
    for ours, style in ((instances.from_teacher, "solid"), (~instances.from_teacher, "dashed")):
        chosen = instances[ours]
        labels = [f"{score:.2f}" for score in chosen.scores.tolist()]
        _add_boxes(right, chosen.boxes.cpu(), color="tab:cyan", labels=labels, style=style)
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
