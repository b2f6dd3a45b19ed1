"""fvcore's focal loss in the memory of its inputs.

As it stands, eager autograd keeps eight tensors of the size of the class scores until the backward
pass: gigabytes for a batch of views of 800 pixels with 80 classes. Here the scores and labels alone
are kept, and the loss is computed again, part by part, for its gradient. Values and gradients are
those of fvcore's own operations.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from fvcore.nn import sigmoid_focal_loss
from torch import Tensor

# Scores computed at once. A multiple of what vector loops take, so that no score is computed in the
# tail of one, where some functions round otherwise, that would not be without the parts.
_PART = 1 << 22
_PART_ON_GPU = 1 << 25


def focal_loss(
    inputs: Tensor,
    targets: Tensor,
    alpha: float = -1,
    gamma: float = 2,
    reduction: str = "none",
) -> Tensor:
    """As `fvcore.nn.sigmoid_focal_loss`, whose only reduction that detectors use is `sum`."""
    if reduction != "sum":
        return sigmoid_focal_loss(inputs, targets, alpha=alpha, gamma=gamma, reduction=reduction)
    found: Tensor = _Sum.apply(inputs, targets, alpha, gamma)
    return found


class _Sum(torch.autograd.Function):
    """The sum over all scores."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, targets: Tensor, alpha: float, gamma: float) -> Tensor:
        """Args: of one shape; and those of the loss."""
        ctx.save_for_backward(inputs, targets)
        ctx.options = {"alpha": alpha, "gamma": gamma}
        losses = torch.empty(inputs.shape, dtype=torch.float32, device=inputs.device)
        for scores, labels, part in _parts(inputs, targets, losses):
            part.copy_(sigmoid_focal_loss(scores, labels, **ctx.options))
        return losses.sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        """The gradient of the scores."""
        inputs, targets = ctx.saved_tensors
        found = torch.empty_like(inputs, memory_format=torch.contiguous_format)
        for scores, labels, part in _parts(inputs, targets, found):
            with torch.enable_grad():
                leaf = scores.detach().requires_grad_()
                losses = sigmoid_focal_loss(leaf, labels, **ctx.options)
            part.copy_(torch.autograd.grad(losses, leaf, gradient.expand_as(losses))[0])
        return found, None, None, None


def _parts(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same elements of several tensors, a bounded number at a time."""
    size = _PART_ON_GPU if tensors[0].is_cuda else _PART
    # The last one is written to, and contiguous: views.
    return zip(*(one.reshape(-1).split(size) for one in tensors), strict=True)
