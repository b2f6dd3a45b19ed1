"""Method `boxes`: the student's boxes are pulled to the teacher's, by their overlap.

The overlap is the generalised IoU of Rezatofighi et al., Generalized Intersection over Union,
CVPR 2019.

Shape letters: N images, R anchors of an image. Boxes are XYXY_ABS in pixels of the view.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from configs.nodes import BoxesConfig

from .base import Method, Step
from .pyramids import Total, not_zero, of_this_rank, precise

# Square pixels: a box without area has a quotient, and a gradient of zero through it.
_AREA_FLOOR = 1e-6


def boxes_loss(
    student_boxes: Tensor,
    teacher_boxes: Tensor,
    weights: Tensor,
    valid: Tensor,
    *,
    total: Total = of_this_rank,
) -> Tensor:
    """1 - GIoU of the decoded boxes, averaged over all anchors by the teacher's confidence.

    Args:
        student_boxes: (N, R, 4), not clipped.
        teacher_boxes: (N, R, 4), of the same anchors; a constant.
        weights: (N, R), the teacher's best probability at an anchor, 0..1; a constant.
        valid: (N, R) bool, whether the anchor lies on its record's own grid; others take no part.
        total: see `Total`; gets the sum of the weights, a scalar.

    Returns:
        Scalar: sum of weight * (1 - GIoU) / sum of weights, both over all levels and images; zero
        where the weights sum to zero.
    """
    weights = precise(weights.detach()).masked_fill(~valid, 0.0)
    overlap = generalized_iou(precise(student_boxes), precise(teacher_boxes.detach()))
    return (weights * (1.0 - overlap)).sum() / not_zero(total(weights.sum()))


def generalized_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU less the share of the hull, the smallest box around both, that neither covers.

    Args:
        first, second: (..., 4), broadcast; union and hull count as 1e-6 square pixels at least.

    Returns:
        (...), -1..1.
    """
    intersection, union = intersection_and_union(first, second)
    high = torch.maximum(first[..., 2:], second[..., 2:])
    low = torch.minimum(first[..., :2], second[..., :2])
    hull = _area(high - low).clamp(min=_AREA_FLOOR)
    return intersection / union - (hull - union) / hull


def intersection_and_union(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Areas that boxes share, and that they cover together, 1e-6 square pixels at least.

    Args:
        first, second: (..., 4), broadcast.

    Returns:
        Two tensors (...).
    """
    high = torch.minimum(first[..., 2:], second[..., 2:])
    low = torch.maximum(first[..., :2], second[..., :2])
    intersection = _area((high - low).clamp(min=0.0))
    both = sum(_area(one[..., 2:] - one[..., :2]) for one in (first, second))
    return intersection, (both - intersection).clamp(min=_AREA_FLOOR)


def _area(sides: Tensor) -> Tensor:
    """Of (..., 2), their product; the gradient of `prod` would wait for a GPU."""
    return sides[..., 0] * sides[..., 1]


class BoxOverlap(Method):
    """Pulls the boxes of all anchors to the teacher's where it is sure of something."""

    name = "boxes"
    Config = BoxesConfig
    weights: ClassVar[dict[str, str]] = {"": "weight"}

    @classmethod
    def needs(cls, config: BoxesConfig) -> tuple[str, ...]:
        """See `Method`."""
        return ("scores", "deltas")

    def forward(self, step: Step, chosen: None) -> dict[str, Tensor]:
        """See `boxes_loss`."""
        best = step.teacher.probabilities.amax(dim=2)
        return {"": boxes_loss(*step.boxes, best, step.teacher.valid, total=step.total)}
