"""CWD: every channel as a distribution over positions.

Source: Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, ICCV 2021, section 3.

Shape letters: N images, C channels, L levels, H_l and W_l the grid of a level.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from configs.nodes import CwdConfig

from .base import Step
from .features import AdaptedMethod
from .pyramids import Total, check_alike, num_images, of_this_rank, precise


def cwd_loss(
    student: Sequence[Tensor],
    teacher: Sequence[Tensor],
    inside: Sequence[Tensor],
    *,
    temperature: float = 1.0,
    total: Total = of_this_rank,
) -> Tensor:
    """temperature^2 KL(T, S) of softmaxes over positions, averaged over images and channels.

    The levels' averages are summed; there is no division by the number of positions.

    Args:
        student: L tensors (N, C, H_l, W_l), adapted where channels differ.
        teacher: of the same shapes.
        inside: L bool tensors (N, 1, H_l, W_l), the positions of each record's own grid.
        temperature: divides the features before the softmax, above 0.
        total: gets N.

    Returns:
        Scalar, unweighted, in nats times temperature^2.

    Raises:
        ValueError: the shapes contradict each other.
    """
    check_alike(student, teacher, inside)
    sums = [
        F.kl_div(
            _log_softmax(precise(mine) / temperature, positions),
            _log_softmax(precise(theirs.detach()) / temperature, positions),
            reduction="sum",
            log_target=True,
        )
        / mine.shape[1]
        for mine, theirs, positions in zip(student, teacher, inside, strict=True)
    ]
    return temperature**2 * torch.stack(sums).sum() / num_images(student[0], total)


def _log_softmax(features: Tensor, inside: Tensor) -> Tensor:
    """Over the positions inside: (N, C, H, W) to (N, C, H W).

    Outside is the lowest finite number, whose exponential is 0: with infinity, the difference of
    two logarithms there would be NaN.
    """
    filled = features.masked_fill(~inside, torch.finfo(features.dtype).min)
    return filled.flatten(2).log_softmax(dim=2)


class Cwd(AdaptedMethod):
    """Compares where each channel of the two pyramids is active."""

    name = "cwd"
    Config = CwdConfig
    weights: ClassVar[dict[str, str]] = {"": "weight"}
    too_coarse: ClassVar[dict[str, str]] = {
        "compact": "its gradient had a cosine of 0.989 with that under the teacher itself"
    }
    config: CwdConfig

    def forward(self, step: Step, chosen: None) -> dict[str, Tensor]:
        """See `cwd_loss`."""
        temperature = self.config.temperature
        return {"": cwd_loss(*self.pyramids(step), temperature=temperature, total=step.total)}
