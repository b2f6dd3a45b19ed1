"""Boxes beside the images that they lie in: which are warned of, and what is said."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from dataset.elements import Problem, show_box
from dataset.tables import ImageTable, ObjectTable

# COCO's own boxes leave the image by fractions of a pixel.
_NOISE_PIXELS = 1e-3
_NO_AREA, _OUTSIDE, _BEYOND = 1, 2, 3


@dataclass(frozen=True, kw_only=True, eq=False)
class BoxWarnings:
    """What is odd about M boxes, kept as numbers: a file may hold a million of them.

    Attributes:
        objects, images: what was looked at.
        flags: (M,) int8, 0 for a sound box, or a kind of warning.
        beyond: (M,) float64, pixels by which it reaches out of its image, where positive.
    """

    objects: ObjectTable
    images: ImageTable
    flags: NDArray[np.int8]
    beyond: NDArray[np.float64]

    @property
    def is_without_extent(self) -> NDArray[np.bool_]:
        """(M,) whether nothing of the box is left in its image."""
        return (self.flags == _NO_AREA) | (self.flags == _OUTSIDE)

    def groups(self) -> Iterator[tuple[int, Iterator[Problem]]]:
        """For every kind there is: the number of boxes, and a warning for each."""
        for flag in (_NO_AREA, _OUTSIDE, _BEYOND):
            rows = np.flatnonzero(self.flags == flag)
            if len(rows):
                yield len(rows), map(self._problem, rows.tolist())

    def _problem(self, row: int) -> Problem:
        objects, images = self.objects, self.images
        image = int(np.searchsorted(images.ids, objects.image_ids[row]))
        shown = show_box(tuple(objects.boxes_xywh_abs[row].tolist()))
        size = f"{images.heights[image]}x{images.widths[image]} image (height x width)"
        message = {
            _NO_AREA: f"{shown} has no area; training drops it",
            _OUTSIDE: f"{shown} lies outside of the {size}; training drops it",
            _BEYOND: f"{shown} reaches {self.beyond[row]:g} pixels out of the {size}; training "
            "clips it",
        }[int(self.flags[row])]
        name = images.file_names[image]
        return Problem(name, "box", f"annotation {objects.ids[row]}: {message}", "warning")


def judge_boxes(
    objects: ObjectTable, images: ImageTable, *, without_size: Collection[int] = ()
) -> BoxWarnings:
    """Compare M boxes with their images.

    Args:
        objects: each of an image of the table.
        images: the table.
        without_size: ids of images whose size is not certain; their boxes are not compared.
    """
    rows = np.searchsorted(images.ids, objects.image_ids)
    height, width = images.heights[rows].astype(float), images.widths[rows].astype(float)
    x, y, w, h = objects.boxes_xywh_abs.T
    beyond = np.max([-x, -y, x + w - width, y + h - height], axis=0)
    is_outside = (x >= width) | (y >= height) | (x + w <= 0) | (y + h <= 0)
    flags = np.where(beyond > _NOISE_PIXELS, _BEYOND, 0)
    flags[is_outside] = _OUTSIDE
    flags[np.isin(objects.image_ids, list(without_size))] = 0
    flags[(w == 0) | (h == 0)] = _NO_AREA
    return BoxWarnings(objects=objects, images=images, flags=flags.astype(np.int8), beyond=beyond)


def all_normalized(boxes_xywh: NDArray[np.float64]) -> bool:
    """Whether M boxes are shares of their images, as YOLO has them, and no pixels."""
    is_share = bool(((boxes_xywh >= 0) & (boxes_xywh <= 1)).all())
    return is_share and bool((boxes_xywh % 1 != 0).any())
