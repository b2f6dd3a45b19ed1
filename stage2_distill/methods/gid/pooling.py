"""Features of general instances, cut out of a pyramid by ROIAlign."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from detectron2.layers import ROIAlign
from detectron2.modeling.poolers import assign_boxes_to_levels
from detectron2.structures import Boxes
from torch import Tensor, nn

from configs.nodes import GidConfig
from stage2_distill.methods.pyramids import precise

# detectron2's ROIPooler: a box of 224 px a side is read from the level of stride 16.
_CANONICAL_SIZE = 224
_CANONICAL_LEVEL = 4


@dataclass(frozen=True, kw_only=True)
class Rois:
    """G boxes of a batch of N images, and the levels that they are read from.

    What the host needs of them lies on the host, so that nothing has to be asked of the device.

    Attributes:
        boxes: (G, 4) float32, XYXY_ABS, pixels of the view, images in order; on the host.
        image: (G,) int64, the image of each; on the host.
        level: (G,) int64, the level of each; on the host.
        counts: N numbers of boxes, their sum is G.
        per_level: L numbers of boxes, their sum is G.
        by_level: (G, 5) float32, image and box, finest level first, as ROIAlign takes them.
        order: (G,) int64, the place in `by_level` of each box.
    """

    boxes: Tensor
    image: Tensor
    level: Tensor
    counts: list[int]
    per_level: list[int]
    by_level: Tensor
    order: Tensor

    def __len__(self) -> int:
        """G."""
        return len(self.boxes)


def are_consecutive(strides: Sequence[int]) -> bool:
    """Whether strides are consecutive powers of two, finest first, and at least one."""
    powers = [math.log2(stride) if stride > 0 else math.nan for stride in strides]
    return bool(powers) and all(p == powers[0] + i and p % 1 == 0 for i, p in enumerate(powers))


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
        if not are_consecutive(strides):
            raise ValueError(f"strides must be consecutive powers of two, got {list(strides)}")
        self._strides = list(strides)
        self._levels = (int(math.log2(strides[0])), int(math.log2(strides[-1])))
        size = (config.roi_size, config.roi_size)
        self._aligns = nn.ModuleList(
            ROIAlign(size, 1.0 / stride, config.sampling_ratio, aligned=True) for stride in strides
        )

    def place(self, boxes: Tensor, valid: Tensor, device: torch.device | str) -> Rois:
        """Say what to read for the boxes of a batch.

        Args:
            boxes: (N, G, 4), XYXY_ABS, pixels of the view, inside the image; on the host.
            valid: (N, G) bool, which of them are boxes; on the host.
            device: where the pyramids are.
        """
        image = valid.nonzero()[:, 0]
        chosen = boxes[valid].float()
        level = assign_boxes_to_levels(
            [Boxes(chosen)], *self._levels, _CANONICAL_SIZE, _CANONICAL_LEVEL
        )
        by_level = level.argsort(stable=True)
        rows = torch.cat([image[:, None].to(chosen.dtype), chosen], dim=1)[by_level]
        return Rois(
            boxes=chosen,
            image=image,
            level=level,
            counts=valid.sum(dim=1).tolist(),
            per_level=torch.bincount(level, minlength=len(self._strides)).tolist(),
            by_level=rows.to(device, non_blocking=True),
            order=by_level.argsort().to(device, non_blocking=True),
        )

    def forward(self, features: Sequence[Tensor], rois: Rois) -> Tensor:
        """Pool every box of the batch.

        Args:
            features: L tensors (N, C, H_l, W_l), any float dtype.
            rois: from `place`.

        Returns:
            (G, C, roi_size, roi_size) float32, images in order.
        """
        pooled = []
        parts = zip(self._aligns, features, rois.by_level.split(rois.per_level), strict=True)
        with torch.autocast(features[0].device.type, enabled=False):
            for align, level, part in parts:
                # Without any box all levels are asked, so that the empty result has a gradient.
                if len(part) or not len(rois):
                    pooled.append(align(precise(level), part))
            return torch.cat(pooled).index_select(0, rois.order)

    def cells(self, features: Sequence[Tensor], rois: Rois) -> list[Tensor]:
        """Say which cells of the pyramid `forward` reads for these boxes.

        Args:
            features: L tensors (N, C, H_l, W_l); only their shapes matter.
            rois: from `place`.

        Returns:
            L masks (N, H_l, W_l) bool, on the host.
        """
        masks = [
            torch.zeros((level.shape[0], *level.shape[2:]), dtype=torch.bool) for level in features
        ]
        arrays = [mask.numpy() for mask in masks]
        stride = torch.tensor(self._strides)[rois.level][:, None]
        # ROIAlign samples strictly inside the box, between the centres of two cells an axis.
        first = torch.floor(rois.boxes[:, :2] / stride - 0.5).clamp(min=0).long()
        last = torch.floor(rois.boxes[:, 2:] / stride - 0.5).long() + 2
        places = torch.stack([rois.level, rois.image], dim=1)
        for level, image, x1, y1, x2, y2 in torch.cat([places, first, last], dim=1).tolist():
            arrays[level][image, y1:y2, x1:x2] = True
        return masks
