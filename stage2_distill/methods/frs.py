"""Method `frs`: feature richness scores weigh where features and class scores are distilled.

Source: Du et al., Distilling Object Detectors with Feature Richness, NeurIPS 2021.

Shape letters: N images, C channels (c of the student, d of the teacher), L levels, H_l and W_l the
grid of a level, P positions of one level, A anchors per position, R anchors of an image, K classes.
Anchors are ordered level, H, W, A.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from configs.nodes import FrsConfig

from .base import Pair, Step
from .features import FeatureMethod
from .layers import convolution, per_level
from .pyramids import Total, check_alike, not_zero, of_this_rank, precise


class FrsAdaptation(nn.Module):
    """One 3x3 convolution for each level, without a ReLU after it, whatever the channels are."""

    def __init__(self, levels: int, *, student_channels: int, teacher_channels: int) -> None:
        """Args: number of levels, and the channels of the two pyramids."""
        super().__init__()
        self.convs = per_level(lambda: convolution(student_channels, teacher_channels, 3), levels)

    def forward(self, features: Sequence[Tensor], inside: Sequence[Tensor]) -> list[Tensor]:
        """Map the student's pyramid to the teacher's channels.

        Args:
            features: L tensors (N, c, H_l, W_l).
            inside: L bool tensors (N, 1, H_l, W_l), the positions of each record's own grid. The
                others count as zero padding, and are zero in the result.

        Returns:
            L tensors (N, d, H_l, W_l).
        """
        return [
            conv(level.masked_fill(~there, 0.0)).masked_fill(~there, 0.0)
            for conv, level, there in zip(self.convs, features, inside, strict=True)
        ]


def frs_losses(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    logits: Tensor,
    probabilities: Tensor,
    inside: Sequence[Tensor],
    *,
    total: Total = of_this_rank,
) -> dict[str, Tensor]:
    """Compare features and class scores where the teacher's class scores are high.

    The richness m of a position is the teacher's highest probability there, over anchors and
    classes, without a threshold. A two-stage teacher's is its objectness, K = 1.

    Args:
        student: L tensors (N, d, H_l, W_l), after the adaptation.
        teacher: L tensors (N, d, H_l, W_l); constants.
        logits: (N, R, K) of the student, before the sigmoid.
        probabilities: (N, R, K) of the teacher, 0..1; constants.
        inside: L bool tensors (N, 1, H_l, W_l), the positions that take part.
        total: see `Total`; gets the sums of m, (L,).

    Returns:
        Two scalars, both summed over the levels and divided on each by its sum of m over positions
        and images: `feature`, the sum of m (S - T)^2 over channels and positions; `cls`, the sum
        of m times the binary cross-entropy over anchors, classes and positions. Zero on a level
        where every m is zero.

    Raises:
        ValueError: the shapes contradict each other.
    """
    check_alike(student, teacher, inside)
    probabilities = probabilities.detach()
    richness = feature_richness(probabilities, inside)
    features = [
        (m * (precise(s) - precise(t.detach())).square()).sum()
        for s, t, m in zip(student, teacher, richness, strict=True)
    ]
    sides = zip(_by_level(logits, inside), _by_level(probabilities, inside), strict=True)
    classes = [_weighted_bce(*pair, m) for pair, m in zip(sides, richness, strict=True)]
    sums = not_zero(total(torch.stack([m.sum() for m in richness])))
    terms = {"feature": features, "cls": classes}
    return {name: (torch.stack(levels) / sums).sum() for name, levels in terms.items()}


def feature_richness(probabilities: Tensor, inside: Sequence[Tensor]) -> list[Tensor]:
    """The highest probability at each position, over anchors and classes.

    Args:
        probabilities: (N, R, K), 0..1.
        inside: L bool tensors (N, 1, H_l, W_l).

    Returns:
        L tensors (N, 1, H_l, W_l), zero outside.
    """
    return [
        precise(level.amax(dim=2)).view_as(there).masked_fill(~there, 0.0)
        for level, there in zip(_by_level(probabilities, inside), inside, strict=True)
    ]


def ramp_factor(iteration: int, ramp_iters: int) -> float:
    """Factor on both weights: rises linearly from 0 at iteration 0 to 1 at `ramp_iters`."""
    return 1.0 if iteration >= ramp_iters else iteration / ramp_iters


def _by_level(values: Tensor, inside: Sequence[Tensor]) -> list[Tensor]:
    """Split values (N, R, K) of anchors into L tensors (N, P, A * K) of positions."""
    areas = [there.shape[1:].numel() for there in inside]
    if values.shape[1] % sum(areas):
        raise ValueError(
            f"expected as many anchors at each of the {sum(areas)} positions of all levels, got "
            f"{values.shape[1]} anchors in all; give the scores of these levels alone"
        )
    return list(values.unflatten(1, (sum(areas), -1)).flatten(2).split(areas, dim=1))


def _weighted_bce(logits: Tensor, probabilities: Tensor, weights: Tensor) -> Tensor:
    """Sum over (N, P, A * K), by the weight (N, 1, H_l, W_l) of a position."""
    return F.binary_cross_entropy_with_logits(
        precise(logits),
        precise(probabilities),
        weight=weights.flatten(1)[..., None],
        reduction="sum",
    )


class Frs(FeatureMethod):
    """Compares features and class scores where the teacher sees something."""

    name = "frs"
    Config = FrsConfig
    weights: ClassVar[dict[str, str]] = {"feature": "feature_weight", "cls": "cls_weight"}
    config: FrsConfig

    def __init__(self, config: FrsConfig, pair: Pair) -> None:
        """See `Method`."""
        super().__init__(config, pair)
        self.adaptation = FrsAdaptation(len(self.levels), **self.channels)

    @classmethod
    def needs(cls, config: FrsConfig) -> tuple[str, ...]:
        """See `Method`."""
        return ("features", "scores")

    @classmethod
    def full_weight_at(cls, config: FrsConfig) -> int:
        """See `Method`."""
        return config.ramp_iters

    def forward(self, step: Step, chosen: None) -> dict[str, Tensor]:
        """See `frs_losses`; after FRS.RAMP_ITERS at their full weight."""
        student, teacher, inside = self.pyramids(step)
        logits, probabilities = (
            step.outputs.places_on(self.levels, scores)
            for scores in (step.outputs.logits, step.teacher.probabilities)
        )
        terms = frs_losses(
            self.adaptation(student, inside),
            teacher,
            logits,
            probabilities,
            inside,
            total=step.total,
        )
        ramp = ramp_factor(step.iteration, self.config.ramp_iters)
        return {name: ramp * value for name, value in terms.items()}
