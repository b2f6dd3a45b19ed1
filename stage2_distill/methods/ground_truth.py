"""Ground truth of a batch as tensors with masks.

Shape letters: N images, M places for the ground-truth boxes of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Instances
from torch import Tensor


def batched_boxes(targets: Sequence[Instances]) -> tuple[Tensor, Tensor]:
    """Put the ground-truth boxes of N images into one tensor.

    Args:
        targets: of each image, with `gt_boxes`.

    Returns:
        Boxes (N, M, 4) XYXY_ABS, pixels of the view, zero where there is none, with M the most of
        an image; and valid (N, M) bool, whether there is one. M is 0 if no image has any.
    """
    joined = torch.cat([target.gt_boxes.tensor for target in targets])
    # Counts are known on the host, so that nothing waits for a GPU, or is launched for each image.
    counts = torch.tensor([len(target) for target in targets])
    valid = torch.arange(int(counts.max())) < counts[:, None]
    places = valid.flatten().nonzero().squeeze(1).to(joined.device, non_blocking=True)
    boxes = joined.new_zeros(valid.numel(), 4).index_copy_(0, places, joined)
    return boxes.view(*valid.shape, 4), valid.to(joined.device, non_blocking=True)
