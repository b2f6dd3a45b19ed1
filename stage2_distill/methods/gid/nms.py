"""Greedy non-maximum suppression (NMS) of all images of a batch at once, without classes.

torchvision's works through every box of one image and lets the host wait for the result. GISM wants
only the first few: each is one round over the candidates of all images, by the same arithmetic, so
that a GPU is not waited for and more images cost no more launches.

Shape letters: N images, P candidates, G boxes to take. Boxes are XYXY_ABS.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def keep_first(boxes: Tensor, usable: Tensor, iou: float, count: int) -> tuple[Tensor, Tensor]:
    """Take the first `count` boxes of each image that no box taken before overlaps.

    Args:
        boxes: (N, P, 4), best first.
        usable: (N, P) bool, those that take part.
        iou: a box that overlaps a taken one by more than this is dropped.
        count: of boxes to take from each image.

    Returns:
        Places (N, G) int64 in P, and whether there was a box left to take (N, G) bool, with G =
        min(count, P).
    """
    candidates = boxes.shape[1]
    area = (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])
    # With the far corner negated, intersecting is one maximum.
    corners = torch.cat([boxes[..., :2], -boxes[..., 2:], area[..., None]], dim=2)
    numbers = torch.arange(candidates, 0, -1, device=boxes.device)
    rank = torch.where(usable, numbers, 0)  # [N, P]; 0: not, or no longer, to be had
    limit = _float32_below(iou)
    ranks, places = [], []
    for _ in range(min(count, candidates)):
        best, place = rank.max(dim=1, keepdim=True)
        taken = corners.gather(1, place[..., None].expand(-1, -1, 5))  # [N, 1, 5]
        nearest = torch.maximum(corners[..., :4], taken[..., :4])
        # Minus width and height of the intersection.
        sides = (nearest[..., :2] + nearest[..., 2:]).clamp_(max=0)
        intersection = sides[..., 0] * sides[..., 1]
        union = (area + taken[..., 4]).sub_(intersection)
        rank.masked_fill_(intersection.div_(union) > limit, 0)
        if limit >= 1:  # a box does not overlap itself by more than 1
            rank.scatter_(1, place, 0)
        ranks.append(best)
        places.append(place)
    if not places:
        return usable.new_zeros(usable.shape, dtype=torch.int64), usable
    return torch.cat(places, dim=1), torch.cat(ranks, dim=1) > 0


def _float32_below(value: float) -> float:
    """The largest float32 that is not above a value: float32 numbers exceed both or none."""
    nearest = np.float32(value)
    return float(nearest if float(nearest) <= value else np.nextafter(nearest, np.float32(-np.inf)))
