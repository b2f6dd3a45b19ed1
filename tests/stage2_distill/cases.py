"""Random batches for the tests: numpy arrays as the reference reads them, tensors of the same.

All values are float32 from the start, so that both sides compute from the same numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from torch import Tensor

from configs.nodes import GidConfig
from stage2_distill.methods.gid.gism import GeneralInstances, select
from stage2_distill.methods.gid.pooling import GiPooler, Rois
from stage2_distill.teacher_batch import Grid, TeacherBatch, assemble
from storage import Geometry, Signal
from tests.stage2_distill import reference

Array = np.ndarray
TRANSFORM = Box2BoxTransform(weights=(1.0, 1.0, 1.0, 1.0))
STRIDES = (8, 16)
STYLES = ("random", "ties", "silent", "huge", "crowd")

# Few values, so that anchors tie exactly. Only logits whose sigmoid any float holds exactly: torch
# rounds others differently in the lanes and in the tail of a vector loop, and the tie is lost.
_LOGITS = (-800.0, 0.0, 800.0)
_PROBABILITIES = (0.0, 0.05, 0.21, 0.5, 0.66, 0.93, 1.0)
# Where float32 saturates above and is far from zero in its exponent below.
_HUGE = 80.0


@dataclass
class Image:
    """One image: the teacher's record on its own grid, the student on the batch's."""

    sizes: list[tuple[int, int]]
    image_size: tuple[int, int]
    features: list[Array]
    probabilities: Array
    deltas: Array
    centerness: Array


@dataclass
class Case:
    """A batch: N images, and the student's outputs on the grid of the largest."""

    sizes: list[tuple[int, int]]
    num_anchors: int
    images: list[Image]
    anchors: Array
    student_features: list[Array]
    logits: Array
    student_deltas: Array
    centerness: Array

    def teacher(self) -> TeacherBatch:
        """The records, assembled."""
        return together(self, range(len(self.images)), self.sizes)

    def selected(self, config: GidConfig) -> list[GeneralInstances]:
        """The GIs of each image."""
        found = self.select(config)
        return [found.of_image(number) for number in range(len(self.images))]

    def select(self, config: GidConfig) -> GeneralInstances:
        """GISM of the package."""
        return select(
            self.teacher(),
            tensor(self.logits),
            tensor(self.student_deltas),
            anchors=tensor(self.anchors),
            image_sizes=[image.image_size for image in self.images],
            box_transform=TRANSFORM,
            config=config,
            centerness=tensor(self.centerness) if config.score == "centered" else None,
        )

    def own_anchors(self, number: int) -> list[int]:
        """The batch's anchor index of every anchor of one record, in the record's order."""
        found: list[int] = []
        start = 0
        for (h, w), (batch_h, batch_w) in zip(self.images[number].sizes, self.sizes, strict=True):
            for y in range(h):
                for x in range(w):
                    first = start + (y * batch_w + x) * self.num_anchors
                    found.extend(range(first, first + self.num_anchors))
            start += batch_h * batch_w * self.num_anchors
        return found

    def on_batch_grid(self, number: int) -> tuple[Array, Array, Array]:
        """Probabilities, deltas and valid of one record, placed anchor by anchor."""
        image = self.images[number]
        count = len(self.anchors)
        probabilities = np.zeros((count, image.probabilities.shape[1]), np.float32)
        deltas = np.zeros((count, 4), np.float32)
        valid = np.zeros(count, bool)
        for own, place in enumerate(self.own_anchors(number)):
            probabilities[place] = image.probabilities[own]
            deltas[place] = image.deltas[own]
            valid[place] = True
        return probabilities, deltas, valid


def centres(case: Case, number: int) -> tuple[Array, Array]:
    """Centerness of an image on the batch's grid: the teacher's, 0..1, and the student's logits."""
    theirs = np.zeros((len(case.anchors), 1))
    theirs[case.own_anchors(number)] = case.images[number].centerness
    return theirs, case.centerness[number].astype(float)


def record(image: Image) -> dict[str, Tensor]:
    """What is decoded of one image."""
    features = [tensor(level).flatten(1) for level in image.features]
    return {
        "features": torch.cat(features, dim=1),
        "scores": tensor(image.probabilities),
        "deltas": tensor(image.deltas),
        "centerness": tensor(image.centerness),
    }


def together(case: Case, numbers: Iterable[int], sizes: list[tuple[int, int]]) -> TeacherBatch:
    """Some records of a case on the grid of a batch."""
    images = [case.images[number] for number in numbers]
    channels, (_, classes) = len(images[0].features[0]), images[0].probabilities.shape
    anchors = {"anchors": case.num_anchors}
    signals = [
        Signal("features", "maps", {"channels": channels}),
        Signal("scores", "scores", {**anchors, "classes": classes}),
        Signal("deltas", "deltas", anchors),
        Signal("centerness", "scores", {**anchors, "classes": 1}),
    ]
    geometries = [
        Geometry(*(8 * side for side in one.sizes[0]), tuple(one.sizes)) for one in images
    ]
    grid = Grid(geometries, sizes, range(len(sizes)), torch.device("cpu"))
    values = assemble([record(one) for one in images], signals, grid)
    return TeacherBatch.of_values(values, grid, num_anchors=case.num_anchors)


def tensor(array: Array) -> Tensor:
    """A tensor with its own memory."""
    return torch.from_numpy(np.array(array))


def expected(case: Case, number: int, config: GidConfig) -> reference.Selection:
    """The reference's GIs of one image of a case."""
    probabilities, deltas, valid = case.on_batch_grid(number)
    return reference.select(
        probabilities.astype(float),
        deltas.astype(float),
        valid,
        case.logits[number].astype(float),
        case.student_deltas[number].astype(float),
        case.anchors.astype(float),
        case.images[number].image_size,
        score=config.score,
        pre_nms=config.pre_nms,
        min_side=config.min_side,
        nms_iou=config.nms_iou,
        top_k=config.top_k,
        centres=centres(case, number) if config.score == "centered" else None,
    )


def instances(boxes: list[Tensor]) -> GeneralInstances:
    """GIs at given boxes, N times (G, 4); the i-th of an image comes from its anchor i."""
    most = max(1, *map(len, boxes))
    places = torch.arange(most).expand(len(boxes), most)
    return GeneralInstances(
        # What lies where no GI is must not matter.
        boxes=torch.stack([torch.cat([b, b.new_full((most - len(b), 4), 7e3)]) for b in boxes]),
        scores=torch.linspace(1, 0, most).expand(len(boxes), most),
        anchor_index=places,
        from_teacher=torch.ones(len(boxes), most, dtype=torch.bool),
        valid=places < torch.tensor([[len(of_image)] for of_image in boxes]),
    )


def places_in(pooler: GiPooler, boxes: list[Tensor]) -> Rois:
    """What the pooler reads for given boxes, N times (G, 4)."""
    found = instances(boxes)
    return pooler.place(found.boxes, found.valid, "cpu")


def matcher(low_quality: bool = True) -> Matcher:
    """RetinaNet's own, with the usual thresholds."""
    return Matcher([0.4, 0.5], [0, -1, 1], allow_low_quality_matches=low_quality)


def grid_sizes(height: int, width: int, levels: int = len(STRIDES)) -> list[tuple[int, int]]:
    """Grids of a pyramid whose finest is height x width."""
    sizes = [(height, width)]
    for _ in range(levels - 1):
        h, w = sizes[-1]
        sizes.append(((h + 1) // 2, (w + 1) // 2))
    return sizes


def make_anchors(sizes: list[tuple[int, int]], num_anchors: int) -> Array:
    """(R, 4) in the order level, H, W, A, of two to four strides a side."""
    rows = []
    for (height, width), stride in zip(sizes, STRIDES, strict=True):
        for y in range(height):
            for x in range(width):
                for a in range(num_anchors):
                    w, h = stride * (2 + a), stride * (2 + a / 2)
                    cx, cy = (x + 0.5) * stride, (y + 0.5) * stride
                    rows.append((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2))
    return np.array(rows, np.float32)


def make_case(
    seed: int, style: str, *, images: int = 1, num_classes: int = 3, channels: int = 2
) -> Case:
    """A batch in which the sizes of the images are drawn, and so are all outputs."""
    rng = np.random.default_rng(seed)
    of_centres = np.random.default_rng((seed, 1))
    num_anchors = int(rng.integers(1, 3))
    finest = [(int(rng.integers(2, 7)), int(rng.integers(2, 7))) for _ in range(images)]
    sizes = grid_sizes(max(h for h, _ in finest), max(w for _, w in finest))
    anchors = make_anchors(sizes, num_anchors)
    made = []
    for height, width in finest:
        own = grid_sizes(height, width)
        count = num_anchors * sum(h * w for h, w in own)
        made.append(
            Image(
                sizes=own,
                image_size=(
                    height * STRIDES[0] - int(rng.integers(0, 4)),
                    width * STRIDES[0] - int(rng.integers(0, 4)),
                ),
                features=[_normal(rng, channels, h, w) for h, w in own],
                probabilities=_probabilities(rng, style, (count, num_classes)),
                deltas=_deltas(rng, style, make_anchors(own, num_anchors)),
                centerness=_probabilities(of_centres, style, (count, 1)),
            )
        )
    shape = (images, len(anchors))
    return Case(
        sizes=sizes,
        num_anchors=num_anchors,
        images=made,
        anchors=anchors,
        student_features=[_normal(rng, images, channels, h, w) for h, w in sizes],
        logits=_logits(rng, style, (*shape, num_classes)),
        student_deltas=np.stack([_deltas(rng, style, anchors) for _ in range(images)]),
        centerness=_logits(of_centres, style, (*shape, 1)),
    )


def _normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape).astype(np.float32)


def _probabilities(rng: np.random.Generator, style: str, shape: tuple[int, ...]) -> Array:
    if style == "silent":
        return np.full(shape, 0.5, np.float32)
    if style == "ties":
        return rng.choice(np.array(_PROBABILITIES, np.float32), shape)
    return rng.random(shape, dtype=np.float32)


def _logits(rng: np.random.Generator, style: str, shape: tuple[int, ...]) -> Array:
    if style == "silent":
        return np.zeros(shape, np.float32)
    if style in ("ties", "huge"):
        few = _LOGITS if style == "ties" else (-_HUGE, _HUGE)
        return rng.choice(np.array(few, np.float32), shape)
    return _normal(rng, *shape) * 2


def _deltas(rng: np.random.Generator, style: str, anchors: Array) -> Array:
    """Small random deltas; in a crowd, those that lead every anchor to one of two boxes."""
    if style != "crowd":
        return _normal(rng, len(anchors), 4) * np.float32(0.4)
    boxes = np.array([(2.0, 3.0, 30.0, 28.0), (5.0, 8.0, 14.0, 40.0)])
    goal = boxes[rng.integers(0, 2, len(anchors))]
    size = anchors[:, 2:] - anchors[:, :2]
    shift = ((goal[:, :2] + goal[:, 2:]) - (anchors[:, :2] + anchors[:, 2:])) / 2 / size
    growth = np.log((goal[:, 2:] - goal[:, :2]) / size)
    return np.concatenate([shift, growth], axis=1).astype(np.float32)
