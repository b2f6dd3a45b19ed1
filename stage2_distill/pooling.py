"""Features of general instances, cut out of a pyramid by ROIAlign."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from detectron2.modeling.poolers import ROIPooler
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
