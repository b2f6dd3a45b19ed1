"""A detector's final boxes as the rows of a record.

Shape letters: N images, F boxes found in an image, D rows of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def clip(boxes: Tensor, image_sizes: Sequence[tuple[int, int]]) -> Tensor:
    """Clip (N, P, 4) boxes, XYXY_ABS, to N views of these heights and widths, without waiting."""
    limits = torch.tensor([(w, h, w, h) for h, w in image_sizes], dtype=boxes.dtype)
    return boxes.clamp(min=0).minimum(limits.to(boxes.device, non_blocking=True)[:, None])


def pack_detections(found: Tensor, image_sizes: Sequence[tuple[int, int]], rows: int) -> Tensor:
    """Clip boxes to their view, drop those that become empty, and give each view as many rows.

    As stock inference ends, but for all views at once; a GPU is not waited for.

    Args:
        found: (N, F, 6) float32: x1 y1 x2 y2 score class, boxes in pixels of the view, XYXY_ABS;
            those of a negative score are none.
        image_sizes: N pairs (height, width) in pixels.
        rows: D.

    Returns:
        (N, D, 6) float32: the same of the boxes that are left, best first; unused rows are zeros
        with score -1 and class -1.
    """
    boxes = clip(found[..., :4], image_sizes)
    unused = (boxes[..., 2:] <= boxes[..., :2]).any(dim=2) | (found[..., 4] < 0)
    left = torch.cat(
        [
            boxes.masked_fill(unused[..., None], 0),
            found[..., 4:].masked_fill(unused[..., None], -1),
        ],
        dim=2,
    )
    order = left[..., 4].argsort(dim=1, descending=True, stable=True)[:, :rows]
    packed = found.new_zeros((len(found), rows, 6))
    packed[..., 4:] = -1
    packed[:, : order.shape[1]] = left.take_along_dim(order[..., None], dim=1)
    return packed


def side_by_side(found: Sequence[Instances]) -> Tensor:
    """Lay the boxes of N images in rows, as `pack_detections` takes them.

    Args:
        found: `pred_boxes` in pixels of the view, `scores` and `pred_classes` of each image.

    Returns:
        (N, F, 6) float32, with as many rows as the image that has most.
    """
    boxes = torch.cat([one.pred_boxes.tensor for one in found]).float()
    scores, classes = (
        torch.cat([one.get(name) for one in found])[:, None].to(boxes)
        for name in ("scores", "pred_classes")
    )
    rows = torch.cat([boxes, scores, classes], dim=1).split([len(one) for one in found])
    return pad_sequence(rows, batch_first=True, padding_value=-1)


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
