"""Feature mimicking: the mean squared difference of adapted features.

Source: the hint loss of Romero et al., FitNets: Hints for Thin Deep Nets, ICLR 2015, as a
mean, at every level of a pyramid, after a 1x1 convolution that is always there (`pointwise`).

Shape letters: N images, C channels, L levels, H_l and W_l the grid of a level.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from stage2_distill.methods.pyramids import (
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
