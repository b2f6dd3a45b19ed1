"""What is chosen for a data set: view sizes, anchors, schedule and loss weights, from its numbers.

Every rule is a beginning, not a finding; the configs that are written say which rule it was.

Shape letters: N images with objects, M objects that are no crowds.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataset.reading import Annotations

# Shorter side of views, pixels: where ImageNet's backbones still have a few cells on P5, and
# detectron2's own for COCO.
_SHORT_SIDES = (320, 800)
# detectron2's 800 by 1333; longer images are made shorter.
_MAX_RATIO = 5 / 3
_SIDE_STEP = 32
_SCALES = (0.8, 0.9, 1.0)
# Up to here more views of each image are worth their place.
_FEW_IMAGES_FOR_VIEWS = 2000
# Below this, the loss weights of the small sets that were measured; above, the paper's.
SMALL_DATA = 10_000
_MAX_BATCH = 8
# Images that a training shows, and how often at least and at most it shows each.
_IMAGES_SHOWN = 40_000
_EPOCHS = (12, 100)
# Stock smallest and largest base sizes of anchors on five levels, pixels.
STOCK_SIZES = (32.0, 512.0)
_LEVELS = 5
_MAX_HALVINGS = 2
# At best, an anchor of twice or half a box's area overlaps it by 0.5.
_REACH = 2**0.5
# The paper's, and detectron2's P3: below so many cells a box is pooled to fewer.
_ROI_SIZE, _SMALL_ROI_SIZE, _FINE_STRIDE = 10, 5, 8
_MIN_SIDE = 10.0


@dataclass(frozen=True, kw_only=True)
class Choices:
    """The numbers that the configs state; sizes are in pixels of the view.

    Attributes:
        classes: names of the categories, by class number.
        num_train, num_used, num_val: images to train on, those with objects, and to evaluate on.
        image_size: median shorter and longer side, pixels of the image.
        scales, max_size: `VIEWS.SCALES`, the largest of which is for tests too, and `MAX_SIZE`.
        num_views: `VIEWS.NUM`.
        box_sizes: square roots of the boxes' areas: quantiles 0.05, 0.5 and 0.95.
        anchors: a row of sizes for each level; None where the stock ones fit.
        batch, learning_rate, epochs, steps, decays, warmup, period: the schedule; `period` is that
            of checkpoints and evaluations, all but the rate and the epochs in steps or images.
        roi_size, min_side: of node GID.
    """

    classes: tuple[str, ...]
    num_train: int
    num_used: int
    num_val: int
    image_size: tuple[int, int]
    scales: tuple[int, ...]
    max_size: int
    num_views: int
    box_sizes: tuple[float, float, float]
    anchors: tuple[tuple[float, ...], ...] | None
    batch: int
    learning_rate: float
    epochs: int
    steps: int
    decays: tuple[int, int]
    warmup: int
    period: int
    roi_size: int
    min_side: float

    @property
    def is_small(self) -> bool:
        """Whether the paper's loss weights are unlikely to fit."""
        return self.num_used < SMALL_DATA


def choose(
    train: Annotations, num_val: int, *, sizes_per_level: int, rate_for_16: float
) -> Choices:
    """Choose for a training set.

    Args:
        train: its annotations.
        num_val: images of the set to evaluate on.
        sizes_per_level: anchor sizes on each level of the detector; 0 where it has no anchors.
        rate_for_16: detectron2's learning rate for 16 images in a step.

    Raises:
        ValueError: there is no object to train on.
    """
    image_rows, sides = _objects(train)
    if not len(sides):
        raise ValueError(
            f"{train.path}: there is no object to train on, crowds aside; expected boxes in "
            "`annotations`"
        )
    scales, max_size = _view_sizes(train)
    boxes = sides * _zoom(train, scales[-1], max_size)[image_rows, None]  # (M, 2)
    low, middle, high = np.quantile(np.sqrt(boxes.prod(axis=1)), (0.05, 0.5, 0.95)).tolist()
    num_used = len(np.unique(image_rows))
    batch = min(_MAX_BATCH, 2 ** (num_used.bit_length() - 1))
    epochs = int(np.clip(-(-_IMAGES_SHOWN // num_used), *_EPOCHS))
    steps = -(-num_used * epochs // batch)
    shorter, longer = _image_sides(train)
    return Choices(
        classes=tuple(train.categories.values()),
        num_train=len(train.images),
        num_used=num_used,
        num_val=num_val,
        image_size=(int(np.median(shorter)), int(np.median(longer))),
        scales=scales,
        max_size=max_size,
        num_views=4 if num_used < _FEW_IMAGES_FOR_VIEWS else 2,
        box_sizes=(low, middle, high),
        anchors=_anchors(low, high, sizes_per_level) if sizes_per_level else None,
        batch=batch,
        learning_rate=rate_for_16 * batch / 16,
        epochs=epochs,
        steps=steps,
        decays=(steps * 2 // 3, steps * 8 // 9),
        warmup=min(1000, steps // 10),
        period=max(1, steps // 5),
        roi_size=_SMALL_ROI_SIZE if middle < _ROI_SIZE * _FINE_STRIDE else _ROI_SIZE,
        min_side=_min_side(boxes),
    )


def _objects(train: Annotations) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """What is trained on: row of the image (M,), and width and height in its pixels (M, 2)."""
    sides = train.objects.boxes_xywh_abs[:, 2:]
    kept = ~train.objects.crowds & (sides > 0).all(axis=1)
    return np.searchsorted(train.images.ids, train.objects.image_ids[kept]), sides[kept]


def _image_sides(train: Annotations) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Shorter and longer sides of all images, (N,) each."""
    heights, widths = train.images.heights, train.images.widths
    return np.minimum(heights, widths), np.maximum(heights, widths)


def _view_sizes(train: Annotations) -> tuple[tuple[int, ...], int]:
    """VIEWS.SCALES and VIEWS.MAX_SIZE: the images' own size, within bounds."""
    shorter, longer = _image_sides(train)
    side = _rounded(float(np.clip(np.median(shorter), *_SHORT_SIDES)))
    ratio = min(float(np.quantile(longer / shorter, 0.95)), _MAX_RATIO)
    scales = tuple(sorted({_rounded(side * share) for share in _SCALES}))
    return scales, int(np.ceil(round(side * ratio, 3)))


def _rounded(side: float) -> int:
    return _SIDE_STEP * round(side / _SIDE_STEP)


def _zoom(train: Annotations, short_side: int, max_size: int) -> NDArray[np.float64]:
    """(N,) how much larger each image is in a test view."""
    shorter, longer = _image_sides(train)
    return np.minimum(short_side / shorter, max_size / longer)


def _anchors(low: float, high: float, per_level: int) -> tuple[tuple[float, ...], ...] | None:
    """Sizes of anchors, halved until the smallest reaches the small boxes; None for stock ones.

    Where the largest no longer reaches the large boxes, levels are further apart instead.
    """
    first, last = STOCK_SIZES
    halvings = 0
    while low * _REACH < first / 2**halvings and halvings < _MAX_HALVINGS:
        halvings += 1
    if not halvings:
        return None
    first /= 2**halvings
    largest = last / 2**halvings * 2 ** ((per_level - 1) / per_level)
    if largest * _REACH >= high:
        last /= 2**halvings
    step = (last / first) ** (1 / (_LEVELS - 1))
    return tuple(
        tuple(round(first * step ** (level + n / per_level), 1) for n in range(per_level))
        for level in range(_LEVELS)
    )


def _min_side(boxes: NDArray[np.float64]) -> float:
    """GID.MIN_SIDE: the paper's, or what leaves small objects in."""
    small = float(np.quantile(boxes.min(axis=1), 0.05))
    return _MIN_SIDE if small > _MIN_SIDE else max(1.0, float(small // 2))
