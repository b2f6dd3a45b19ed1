"""What tests of losses that need more than two pyramids share, beside the contract's helpers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from stage2_distill.methods.pyramids import Total
from tests.stage2_distill.methods.contract import Array, Pyramid, gradients

GARBAGE = 1e3


def part(of: dict[str, Any], images: slice | list[int]) -> dict[str, Any]:
    """Some images of a batch: of every tensor, and of every level of a pyramid."""
    return {
        name: given[images] if isinstance(given, Tensor) else [level[images] for level in given]
        for name, given in of.items()
    }


def assert_like_reference(
    loss_of: Callable[[Sequence[Tensor]], Tensor],
    reference_of: Callable[[Pyramid], float],
    leaves: Sequence[Tensor],
) -> None:
    """Compare the value, and the slopes along some random directions, in float64.

    Args:
        loss_of, reference_of: the loss and its reference, of values for the leaves.
        leaves: float64, all that a gradient is compared of.
    """
    leaves = [leaf.detach().clone().requires_grad_() for leaf in leaves]
    loss = loss_of(leaves)
    values = [leaf.detach().numpy() for leaf in leaves]
    np.testing.assert_allclose(loss.item(), reference_of(values), rtol=1e-10)
    found = [one.numpy() for one in gradients(loss, leaves)]
    rng, step = np.random.default_rng(0), 1e-6
    for _ in range(3):
        along = [rng.standard_normal(value.shape) for value in values]
        ahead, behind = (
            reference_of([v + sign * step * d for v, d in zip(values, along, strict=True)])
            for sign in (1, -1)
        )
        slope = sum(float((g * d).sum()) for g, d in zip(found, along, strict=True))
        np.testing.assert_allclose(slope, (ahead - behind) / (2 * step), rtol=1e-5, atol=1e-8)


def mean_over_ranks(losses_of_ranks: Sequence[Callable[[Total], Tensor]]) -> Tensor:
    """The mean of the ranks' losses when each divides by the mean of the ranks' counts."""
    counts: list[Tensor] = []
    for loss_of in losses_of_ranks:
        loss_of(lambda count: counts.append(count) or count)
    mean = torch.stack(counts).mean(dim=0)
    return torch.stack([loss_of(lambda _: mean) for loss_of in losses_of_ranks]).mean(dim=0)


def arrays(*given: Tensor | Sequence[Tensor]) -> list[Any]:
    """The same as numpy's arrays."""
    return [one.numpy() if isinstance(one, Tensor) else [x.numpy() for x in one] for one in given]


def on(device: str, given: dict[str, Any]) -> dict[str, Any]:
    """A batch on a device; on `meta` reading a value back to the host is an error."""
    return {
        name: one.to(device) if isinstance(one, Tensor) else [level.to(device) for level in one]
        for name, one in given.items()
    }


def in_float32(given: dict[str, Any]) -> dict[str, Any]:
    """A batch as training has it."""

    def narrow(one: Tensor) -> Tensor:
        return one.float() if one.is_floating_point() else one

    return {
        name: narrow(one) if isinstance(one, Tensor) else [narrow(level) for level in one]
        for name, one in given.items()
    }


def spoilt(levels: Sequence[Tensor], inside: Sequence[Tensor]) -> list[Tensor]:
    """The pyramid with other values outside."""
    return [torch.where(there, level, GARBAGE) for level, there in zip(levels, inside, strict=True)]


def set_parameters(module: nn.Module, seed: int) -> None:
    """Random values for all: what starts at zero would hide mistakes."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            values: Array = rng.normal(0.0, 0.5, parameter.shape)
            parameter.copy_(torch.from_numpy(values))
