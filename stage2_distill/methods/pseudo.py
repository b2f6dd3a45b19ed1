"""Method `pseudo`: what the teacher is sure of, and nobody annotated, becomes ground truth.

Any teacher serves any student, as long as their classes are the same.

Shape letters: N images, D detections kept of an image, M places for the ground-truth boxes of an
image. Boxes are XYXY_ABS in pixels of the view.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor

from configs.nodes import PseudoConfig

from .base import DETECTIONS, Method, Pair, Step
from .boxes import intersection_and_union
from .ground_truth import batched_boxes

# detectron2's own limit for ground truth, pixels: an anchor has no deltas to a box without sides.
_SIDE_ABOVE = 1e-5


def with_pseudo_objects(
    targets: Sequence[Instances], detections: Tensor, *, min_score: float, max_iou: float
) -> list[Instances]:
    """Add to the ground truth of a batch what the teacher detects elsewhere.

    Args:
        targets: ground truth of the N images; not modified.
        detections: (N, D, 6) x1 y1 x2 y2 score class, as the cache has them, on the device of the
            ground truth; the score of unused rows is -1.
        min_score: lowest score of a detection that is taken, 0..1.
        max_iou: IoU with a ground-truth box of any class from which on it is left out.

    Returns:
        Of each image, new Instances with `gt_boxes` and `gt_classes` alone: the ground truth, then
        the detections taken, in their order.
    """
    if not targets:
        return []
    boxes, _ = batched_boxes(targets)
    taken = _is_pseudo_object(detections, boxes, min_score, max_iou)
    # Those taken first, so that an image's are a slice: a mask would wait for a GPU image by image.
    order = taken.logical_not().byte().argsort(dim=1, stable=True)
    rows = detections.gather(1, order[..., None].expand_as(detections))
    counts = taken.sum(dim=1).tolist()  # the one wait
    return [
        _joined(target, rows_of_image[:count])
        for target, rows_of_image, count in zip(targets, rows, counts, strict=True)
    ]


def _is_pseudo_object(
    detections: Tensor, boxes: Tensor, min_score: float, max_iou: float
) -> Tensor:
    """Which detections (N, D, 6) are taken beside boxes (N, M, 4): (N, D) bool.

    Where there is no box, the zeros of `batched_boxes` overlap nothing.
    """
    found, scores = detections[..., :4], detections[..., 4]
    intersection, union = intersection_and_union(found[:, :, None], boxes[:, None])  # [N, D, M]
    is_apart = intersection / union < max_iou
    has_extent = (found[..., 2:] - found[..., :2] > _SIDE_ABOVE).all(dim=2)
    return (scores >= min_score) & has_extent & is_apart.all(dim=2)


def _joined(target: Instances, detections: Tensor) -> Instances:
    """Ground truth of an image and detections (D', 6) that are all taken."""
    boxes, classes = target.gt_boxes.tensor, target.gt_classes
    return Instances(
        target.image_size,
        gt_boxes=Boxes(torch.cat([boxes, detections[:, :4].to(boxes.dtype)])),
        gt_classes=torch.cat([classes, detections[:, 5].to(classes.dtype)]),
    )


class Pseudo(Method):
    """Has no loss of its own: the detector, and every other method, learns from more objects.

    An image without labels has what the teacher detects for labels, and none but that.
    """

    name = "pseudo"
    Config = PseudoConfig
    weights: ClassVar[dict[str, str]] = {}
    labels_images = True
    config: PseudoConfig

    def __init__(self, config: PseudoConfig, pair: Pair) -> None:
        """See `Method`."""
        super().__init__(config, pair)
        self._added = 0.0

    @classmethod
    def needs(cls, config: PseudoConfig) -> tuple[str, ...]:
        """See `Method`."""
        return (DETECTIONS,)

    def ground_truth(self, step: Step) -> list[Instances]:
        """See `with_pseudo_objects`."""
        found = with_pseudo_objects(
            step.targets,
            step.teacher.detections,
            min_score=self.config.min_score,
            max_iou=self.config.max_iou,
        )
        added = sum(map(len, found)) - sum(map(len, step.targets))
        self._added = added / len(found)
        return found

    def forward(self, step: Step, chosen: None) -> dict[str, Tensor]:
        """Nothing."""
        return {}

    def metrics(self) -> dict[str, float]:
        """How many objects came to an image of the last step."""
        return {"num_added": self._added}
