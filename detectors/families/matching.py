"""Which anchors or positions belong to boxes, for all images of a batch at once.

Shape letters: N images, n images of one chunk, R anchors of an image, G boxes of an image.
"""

from __future__ import annotations

import torch
from detectron2.modeling.matcher import Matcher
from torch import Tensor

# Overlaps computed at once, 64 MiB per temporary: those of ten boxes per image, for eight images of
# 800x1344.
_CHUNK_ELEMENTS = 1 << 24


@torch.no_grad()
def assigned_anchors(
    matcher: Matcher, boxes: Tensor, valid: Tensor, anchors: Tensor, usable: Tensor
) -> Tensor:
    """Find the anchors that a matcher assigns to boxes, without its lists of indices.

    An anchor is assigned by a threshold on its best overlap or, with low-quality matches, because
    no other meets one of the boxes better. Anchors that are not usable are not offered, so that
    none of them can take the place of a box's best anchor. A box that overlaps no anchor assigns
    none (detectron2's low-quality matches would give it every anchor: all tie at IoU 0).

    Args:
        matcher: the detector's own.
        boxes: (N, G, 4) XYXY_ABS.
        valid: (N, G) bool, whether there is a box.
        anchors: (R, 4) XYXY_ABS, none of them empty.
        usable: (N, R) bool.

    Returns:
        (N, R) bool.
    """
    boxes = boxes.masked_fill(~valid[..., None], 0.0)
    step = _images_at_once(boxes, anchors)
    parts = zip(boxes.split(step), usable.split(step), strict=True)
    return torch.cat([_match(matcher, some, anchors.float(), those) for some, those in parts])


@torch.no_grad()
def places_inside(boxes: Tensor, valid: Tensor, anchors: Tensor, usable: Tensor) -> Tensor:
    """Find the places whose centre lies in a box, not on its border.

    Args: as `assigned_anchors`.

    Returns:
        (N, R) bool.
    """
    boxes = boxes.masked_fill(~valid[..., None], 0.0)  # nothing lies in an empty one
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    parts = boxes.split(_images_at_once(boxes, anchors))
    return torch.cat([_inside(some, centres) for some in parts]) & usable


def _inside(boxes: Tensor, centres: Tensor) -> Tensor:
    """Whether each of the centres (R, 2) lies in one of the boxes (n, G, 4): (n, R) bool."""
    x, y = centres.unbind(1)
    left, top, right, bottom = boxes[..., None].unbind(2)  # [n, G, 1]
    return ((x > left) & (x < right) & (y > top) & (y < bottom)).any(dim=1)


def _images_at_once(boxes: Tensor, anchors: Tensor) -> int:
    if boxes.device.type == "cpu":
        return 1  # within the cache
    return max(1, _CHUNK_ELEMENTS // max(1, boxes.shape[1] * len(anchors)))


def _match(matcher: Matcher, boxes: Tensor, anchors: Tensor, usable: Tensor) -> Tensor:
    """Assigned anchors (n, R) bool of n images, whose boxes (n, G, 4) are empty where none is."""
    overlap = _overlaps(boxes.flatten(0, 1), anchors).unflatten(0, boxes.shape[:2])
    # As if it met no box, an anchor that is not usable is never assigned.
    overlap.masked_fill_(~usable[:, None], 0.0)
    best = overlap.amax(dim=1)  # [n, R]
    assigned = torch.zeros_like(usable)
    ranges = zip(matcher.thresholds[:-1], matcher.thresholds[1:], matcher.labels, strict=True)
    for low, high, label in ranges:
        # At -inf it would be an anchor that meets no box.
        if label == 1 and low > 0:
            assigned |= (best >= low) & (best < high)
    if matcher.allow_low_quality_matches:
        highest = overlap.amax(dim=2, keepdim=True)  # [n, G, 1]
        highest.masked_fill_(highest == 0, -1.0)
        assigned |= (overlap == highest).any(dim=1)
    return assigned


def _overlaps(boxes: Tensor, anchors: Tensor) -> Tensor:
    """IoU (G, R) of boxes (G, 4) and anchors (R, 4), rounded as detectron2 does.

    The anchors must not be empty: then no union is, and an empty box overlaps nothing.
    """
    ours, theirs = boxes[:, :, None].unbind(1), anchors.unbind(1)
    width = torch.minimum(ours[2], theirs[2]).sub_(torch.maximum(ours[0], theirs[0])).clamp_(min=0)
    height = torch.minimum(ours[3], theirs[3]).sub_(torch.maximum(ours[1], theirs[1])).clamp_(min=0)
    intersection = width.mul_(height)
    areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (ours, theirs)]
    return intersection.div_((areas[0] + areas[1]).sub_(intersection))
