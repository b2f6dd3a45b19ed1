"""Feature mimicking: the mean squared difference of adapted features.

Source: the hint loss of Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, as a
mean, at every level of a pyramid, after a 1x1 convolution that is always there (`pointwise`).

Shape letters: N images, C channels, L levels, H_l and W_l the grid of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from configs.nodes import MimicConfig

from .base import Pair, Step
from .features import FeatureMethod
from .layers import apply_each, per_level, pointwise
from .pyramids import (
    Total,
    check_alike,
    num_positions,
    of_this_rank,
    squared_difference,
)


def mimic_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    inside: Sequence[Tensor],
    *,
    total: Total = of_this_rank,
) -> Tensor:
    """Mean of (S - T)^2 over images, channels and positions; the levels' means are summed.

    Args:
        student: L tensors (N, C, H_l, W_l), adapted.
        teacher: of the same shapes.
        inside: L bool tensors (N, 1, H_l, W_l), the positions of each record's own grid.
        total: gets the positions of every level, (L,).

    Returns:
        Scalar, unweighted, in squared units of the features; zero without positions.

    Raises:
        ValueError: the shapes contradict each other.
    """
    check_alike(student, teacher, inside)
    means = [
        squared_difference(mine, theirs, positions) / mine.shape[1]
        for mine, theirs, positions in zip(student, teacher, inside, strict=True)
    ]
    return (torch.stack(means) / num_positions(inside, total)).sum()


class Mimic(FeatureMethod):
    """Pulls the adapted pyramid to the teacher's, everywhere alike."""

    name = "mimic"
    Config = MimicConfig
    weights: ClassVar[dict[str, str]] = {"": "weight"}

    def __init__(self, config: MimicConfig, pair: Pair) -> None:
        """See `Method`."""
        super().__init__(config, pair)
        self.adaptations = per_level(lambda: pointwise(**self.channels), len(self.levels))

    def forward(self, step: Step, chosen: None) -> dict[str, Tensor]:
        """See `mimic_loss`."""
        student, teacher, inside = self.pyramids(step)
        adapted = apply_each(self.adaptations, student)
        return {"": mimic_loss(adapted, teacher, inside, total=step.total)}
