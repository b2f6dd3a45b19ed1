"""A detector's final boxes as the rows of a record."""

from __future__ import annotations

import torch
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor


def pack_detections(instances: Instances, kept: int) -> Tensor:
    """Write the final boxes of one view as rows.

    Args:
        instances: boxes in pixels of the view, XYXY_ABS, with scores and classes.
        kept: D.

    Returns:
        (D, 6) float32: x1 y1 x2 y2 score class, best first, clipped to the view; unused rows are
        zeros with score -1 and class -1.
    """
    # Stock inference ends with this step: it clips, and drops boxes that become empty.
    final = detector_postprocess(instances, *instances.image_size)
    order = torch.argsort(final.scores, descending=True, stable=True)[:kept]
    rows = final.scores.new_zeros((kept, 6), dtype=torch.float32)
    rows[:, 4:] = -1
    rows[: len(order), :4] = final.pred_boxes.tensor[order]
    rows[: len(order), 4] = final.scores[order]
    rows[: len(order), 5] = final.pred_classes[order].to(torch.float32)
    return rows


def unpack_detections(rows: Tensor, image_size: tuple[int, int]) -> Instances:
    """Read the rows that `pack_detections` wrote.

    Args:
        rows: (D, 6).
        image_size: height and width, in pixels, of what the boxes are in.

    Returns:
        `pred_boxes`, `scores` and `pred_classes` of the rows that are used.
    """
    used = rows[rows[:, 4] >= 0]
    boxes, scores, classes = Boxes(used[:, :4]), used[:, 4], used[:, 5].long()
    return Instances(image_size, pred_boxes=boxes, scores=scores, pred_classes=classes)
