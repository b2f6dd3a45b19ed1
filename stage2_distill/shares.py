"""What share each term has of the loss, and of its gradient at the pyramid, in the first steps.

Weights that fit one data set drown the detector's own losses on another, which no later figure
tells as plainly.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

import torch
from detectron2.utils import comm
from torch import Tensor

logger = logging.getLogger(__name__)

# Steps that are looked at: the first ones, and the first whose weights are no longer warmed up.
_FIRST_STEPS = 3
# Distillation with more than this share of either leaves the student too little ground truth.
LIMIT = 0.9
# A gradient of float16 outputs would underflow; training scales its loss too.
_SCALE = 1024.0


class Shares:
    """Logs the shares of the terms, and warns where distillation has nearly all of them."""

    def __init__(self, full_weight_at: int) -> None:
        """Args: the first iteration in which every term has its full weight."""
        self._steps = {*range(_FIRST_STEPS), full_weight_at}
        self._warned = False
        self._idle: set[str] = set()

    def look(
        self,
        iteration: int,
        own: Mapping[str, Tensor],
        distilled: Mapping[str, Tensor],
        features: Sequence[Tensor],
        keys: Mapping[str, str],
    ) -> None:
        """Look at a step, if it is one of those; every rank must call this.

        Args:
            iteration: of the step; further parts of it are not looked at.
            own: the detector's own losses by name.
            distilled: those of the methods, weighted.
            features: L tensors (N, C, H_l, W_l), the student's pyramid, which they were made from.
            keys: name of each of the methods' losses to the config key that weighs it.
        """
        features = [one for one in features if one.requires_grad]
        # With a frozen pyramid there is no gradient to share.
        if iteration not in self._steps or not features:
            return
        self._steps.remove(iteration)
        losses = {**own, **distilled}
        values = torch.stack([loss.detach().float() for loss in losses.values()])
        norms = torch.stack([_gradient_norm(loss, features) for loss in losses.values()])
        of_loss, of_gradient = (
            dict(zip(losses, (part / part.sum()).tolist(), strict=True)) for part in (values, norms)
        )
        if not comm.is_main_process():
            return
        logger.info(
            "iteration %d, shares of the loss / of the gradient at the pyramid: %s",
            iteration,
            "  ".join(f"{name} {of_loss[name]:.1%} / {of_gradient[name]:.1%}" for name in losses),
        )
        self._warn_of_idle(of_loss, {name: of_gradient[name] for name in distilled})
        for what, shares in (("loss", of_loss), ("gradient at the pyramid", of_gradient)):
            self._warn(what, {name: shares[name] for name in distilled}, keys)

    def _warn(self, what: str, shares: Mapping[str, float], keys: Mapping[str, str]) -> None:
        if self._warned or not sum(shares.values()) > LIMIT:
            return
        self._warned = True
        largest = max(shares, key=lambda name: shares[name])
        logger.warning(
            "distillation has %.0f%% of the %s, most of it %s: ground truth hardly counts beside "
            "it; lower %s, or lengthen DISTILL.WARMUP_ITERS",
            100 * sum(shares.values()), what, largest, keys[largest],
        )  # fmt: skip

    def _warn_of_idle(self, of_loss: Mapping[str, float], of_gradient: Mapping[str, float]) -> None:
        """Tell of terms that nothing is learned from: a user's method may have detached one."""
        idle = {name for name, share in of_gradient.items() if share == 0 < abs(of_loss[name])}
        for name in sorted(idle - self._idle):
            logger.warning(
                "%s has %.1f%% of the loss and no gradient at the pyramid: nothing is learned from "
                "it; a method must not detach what it compares of the student",
                name, 100 * of_loss[name],
            )  # fmt: skip
        self._idle |= idle


def _gradient_norm(loss: Tensor, features: Sequence[Tensor]) -> Tensor:
    """The norm of a loss's gradient over all levels, as a scalar; 0 where it has none."""
    if not loss.requires_grad:
        return loss.new_zeros((), dtype=torch.float32)
    found = torch.autograd.grad(
        _SCALE * loss, list(features), retain_graph=True, materialize_grads=True
    )
    norms = [torch.linalg.vector_norm(one.float()) for one in found]
    return torch.linalg.vector_norm(torch.stack(norms)) / _SCALE
