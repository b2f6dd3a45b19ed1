"""Ground truth of a batch as tensors with masks.

Shape letters: N images, M places for the ground-truth boxes of an image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from detectron2.structures import Instances
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


def batched_boxes(targets: Sequence[Instances]) -> tuple[Tensor, Tensor]:
    """Put the ground-truth boxes of N images into one tensor.

    Args:
        targets: of each image, with `gt_boxes`.

    Returns:
        Boxes (N, M, 4) XYXY_ABS, pixels of the view, zero where there is none, with M the most of
        an image; and valid (N, M) bool, whether there is one. M is 0 if no image has any.
    """
    of_images = [target.gt_boxes.tensor for target in targets]
    boxes = pad_sequence(of_images, batch_first=True)
    # Counts are known on the host, so that nothing waits for a GPU.
    counts = torch.tensor([len(one) for one in of_images])
    valid = torch.arange(boxes.shape[1]) < counts[:, None]
    return boxes, valid.to(boxes.device, non_blocking=True)
