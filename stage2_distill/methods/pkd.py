"""PKD: the Pearson correlation of features, channel by channel.

Source: Cao et al., PKD: General Distillation Framework for Object Detectors via Pearson Correlation
Coefficient, NeurIPS 2022, section 3. Half the mean squared difference of two features of mean 0
and deviation 1 is 1 minus their correlation.

Shape letters: N images, C channels, L levels, H_l and W_l the grid of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from configs.nodes import PkdConfig

from .base import Step
from .features import AdaptedMethod
from .mimic import mimic_loss
from .pyramids import Total, check_alike, of_this_rank, precise

# Added to the deviation, not under its root.
_EPSILON = 1e-6


def pkd_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    inside: Sequence[Tensor],
    *,
    total: Total = of_this_rank,
) -> Tensor:
    """Half the mean squared difference of normalised features; the levels' means are summed.

    The mean is over images, channels and positions. Both sides are brought to mean 0 and deviation
    1 per channel, over this rank's images and positions together (`normalised`).

    Args:
        student: L tensors (N, C, H_l, W_l), adapted where channels differ.
        teacher: of the same shapes.
        inside: L bool tensors (N, 1, H_l, W_l), the positions of each record's own grid.
        total: gets the positions of every level, (L,), which the mean divides by.

    Returns:
        Scalar, unweighted, without unit; zero with fewer than two positions.

    Raises:
        ValueError: the shapes contradict each other.
    """
    check_alike(student, teacher, inside)
    mine, theirs = (
        [normalised(level, positions) for level, positions in zip(side, inside, strict=True)]
        for side in (student, teacher)
    )
    return 0.5 * mimic_loss(mine, theirs, inside, total=total)


def normalised(features: Tensor, inside: Tensor) -> Tensor:
    """Bring each channel to mean 0 and deviation 1 over the batch and the positions inside.

    The deviation is unbiased, plus 1e-6; gradients pass through both. A channel of one value
    everywhere becomes exactly 0.

    Args:
        features: (N, C, H, W).
        inside: (N, 1, H, W) bool.

    Returns:
        (N, C, H, W) float32 or float64, 0 outside and with fewer than two positions.
    """
    outside, count = ~inside, inside.sum()
    values = _from_first(precise(features), inside).masked_fill(outside, 0.0)
    mean = values.sum((0, 2, 3), keepdim=True) / count.clamp(min=1)
    centred = (values - mean).masked_fill(outside, 0.0)
    variance = centred.square().sum((0, 2, 3), keepdim=True) / (count - 1).clamp(min=1)
    # The root of 0 has no derivative; that of the smallest normal number is far below epsilon.
    deviation = variance.clamp(min=torch.finfo(variance.dtype).tiny).sqrt()
    return centred / (deviation + _EPSILON)


def _from_first(features: Tensor, inside: Tensor) -> Tensor:
    """Subtract each channel's first value, which changes no deviation from the mean.

    Without it the mean of equal values is off by its rounding, which epsilon does not hide: for
    values of 100 a channel that says nothing would come out as large as any other.
    """
    first = features[:1, :, :1, :1].detach().masked_fill(~inside[:1, :, :1, :1], 0.0)
    return features - first


class Pkd(AdaptedMethod):
    """Correlates the two pyramids, channel by channel; without names, up to a stride of 64 px."""

    name = "pkd"
    Config = PkdConfig
    weights: ClassVar[dict[str, str]] = {"": "weight"}
    max_stride = 64

    def forward(self, step: Step, chosen: None) -> dict[str, Tensor]:
        """See `pkd_loss`."""
        return {"": pkd_loss(*self.pyramids(step), total=step.total)}
