"""Features of general instances, cut out of a pyramid by ROIAlign."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from detectron2.modeling.poolers import ROIPooler, assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor, nn

from configs.schema import GidConfig


class GiPooler(nn.Module):
    """ROIAlign (V2) of a pyramid at the GI boxes; no parameters.

    Each box is read from the level that detectron2's ROIPooler gives it by its size (224 px:
    stride 16), so teacher and student are always compared at the same level.
    """

    def __init__(self, strides: Sequence[int], config: GidConfig) -> None:
        """Args: strides of the L levels, finest first, pixels a cell.

        Raises:
            ValueError: the strides are not consecutive powers of two.
        """
        super().__init__()
        powers = [math.log2(stride) if stride > 0 else math.nan for stride in strides]
        if not powers or any(p != powers[0] + i or p % 1 for i, p in enumerate(powers)):
            raise ValueError(f"strides must be consecutive powers of two, got {list(strides)}")
        self._strides = list(strides)
        self._pooler = ROIPooler(
            output_size=config.roi_size,
            scales=[1.0 / stride for stride in strides],
            sampling_ratio=config.sampling_ratio,
            pooler_type="ROIAlignV2",
        )

    def forward(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> Tensor:
        """Pool every box of the batch.

        Args:
            features: L tensors (N, C, H_l, W_l), any float dtype.
            boxes: N times (G, 4), XYXY_ABS, pixels of the view.

        Returns:
            (sum of G, C, roi_size, roi_size) float32, images in order.
        """
        with torch.autocast(features[0].device.type, enabled=False):
            pooled = self._pooler(
                [level if level.dtype == torch.float64 else level.float() for level in features],
                [Boxes(of_image) for of_image in boxes],
            )
        assert isinstance(pooled, Tensor)
        return pooled

    @torch.no_grad()
    def cells(self, features: Sequence[Tensor], boxes: Sequence[Tensor]) -> list[Tensor]:
        """Say which cells of the pyramid `forward` reads for these boxes.

        Args:
            features: L tensors (N, C, H_l, W_l); only their shapes matter.
            boxes: N times (G, 4), XYXY_ABS, pixels of the view, inside the image.

        Returns:
            L masks (N, H_l, W_l) bool.
        """
        pooler = self._pooler
        levels = assign_boxes_to_levels(
            [Boxes(of_image) for of_image in boxes],
            pooler.min_level,
            pooler.max_level,
            pooler.canonical_box_size,
            pooler.canonical_level,
        )
        every = torch.cat(list(boxes))
        image = torch.cat([levels.new_full((len(b),), i) for i, b in enumerate(boxes)])
        masks = []
        for number, (level, stride) in enumerate(zip(features, self._strides, strict=True)):
            # ROIAlign samples strictly inside the box, between the centres of two cells an axis.
            first = torch.floor(every[:, :2] / stride - 0.5)
            last = torch.floor(every[:, 2:] / stride - 0.5) + 1
            columns = _between(first[:, 0], last[:, 0], level.shape[3])
            rows = _between(first[:, 1], last[:, 1], level.shape[2])
            rows &= (levels == number)[:, None]
            hits = every.new_zeros((level.shape[0], level.shape[2], level.shape[3]))
            hits.index_add_(0, image, (rows[:, :, None] & columns[:, None, :]).to(hits.dtype))
            masks.append(hits > 0)
        return masks


def _between(first: Tensor, last: Tensor, length: int) -> Tensor:
    """(G, length) bool: first <= place <= last, both (G,)."""
    places = torch.arange(length, device=first.device)
    return (places >= first[:, None]) & (places <= last[:, None])
