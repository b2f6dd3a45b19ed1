"""Which objects a view shows, and how much of them: the ground truth of views that are cropped."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from dataset.contents import Annotations
from dataset.tables import ObjectTable
from dataset.views import View, ViewArrays

# Sides up to this are empty to detectron2's `filter_empty_instances`, pixels.
_EMPTY = 1e-5


def visible(annotations: Annotations, views: ViewArrays) -> Annotations:
    """The objects of images as far as a view of each shows them, still in pixels of the images.

    Boxes are clipped as detectron2's mapper clips them, those of which nothing is left are dropped,
    and an area shrinks with its box.

    Args:
        annotations: of the images.
        views: one of each image; objects of other images are dropped.
    """
    objects = annotations.objects
    order = np.argsort(objects.image_ids, kind="stable")
    starts, ends = (
        np.searchsorted(objects.image_ids[order], views.image_id, side)
        for side in ("left", "right")
    )
    boxes, areas = objects.boxes_xywh_abs.copy(), objects.areas.copy()
    kept = np.full(len(order), False)
    for view, start, end in zip(views, starts.tolist(), ends.tolist(), strict=True):
        rows = order[start:end]
        boxes[rows], shares = _shown(objects.boxes_xywh_abs[rows], view)
        areas[rows] *= shares
        kept[rows] = shares > 0
    table = ObjectTable(
        numbers=objects.numbers[kept],
        ids=objects.ids[kept],
        image_ids=objects.image_ids[kept],
        category_ids=objects.category_ids[kept],
        boxes_xywh_abs=boxes[kept],
        areas=areas[kept],
        crowds=objects.crowds[kept],
    )
    return replace(annotations, objects=table)


def _shown(
    boxes: NDArray[np.float64], view: View
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """What is left of (n, 4) boxes XYWH_ABS of an image, and which share of each, 0 if nothing."""
    if not len(boxes):
        return boxes, np.empty(0)
    transforms = view.transforms()
    moved = transforms.apply_box(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1))
    clipped = moved.clip(0, [view.width, view.height] * 2)
    is_left = (clipped[:, 2:] - clipped[:, :2] > _EMPTY).all(axis=1)
    back = transforms.inverse().apply_box(clipped)
    sides = back[:, 2:] - back[:, :2]
    shares = np.zeros(len(boxes))
    shares[is_left] = (sides[is_left] / boxes[is_left, 2:]).prod(axis=1)
    return np.concatenate([back[:, :2], sides], 1), shares
