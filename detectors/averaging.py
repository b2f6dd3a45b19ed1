"""Averaged weights: an exponential moving average of a detector's parameters and buffers."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


class MovingAverage(AveragedModel):
    """PyTorch's average, with the same values and checkpoints, that does not wait for a GPU.

    PyTorch sends the number of updates to the GPU once for each dtype and waits for it, though
    nothing here depends on it. It stays on the host.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        """Args:

        model: what is followed; copied.
        decay: share of the average that an update leaves, 0 to 1.
        """
        follow = get_ema_multi_avg_fn(decay)
        super().__init__(model, multi_avg_fn=follow, use_buffers=True)
        self._follow = follow

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Take the model's values in; the first ones become the average."""
        pairs = list(zip(_values(self.module), _values(model), strict=True))
        if self.n_averaged == 0:
            for average, current in pairs:
                average.copy_(current)
        else:
            for dtype in {average.dtype for average, _ in pairs}:
                alike = [both for both in pairs if both[0].dtype == dtype]
                averages, currents = map(list, zip(*alike, strict=True))
                self._follow(averages, currents, self.n_averaged)
        self.n_averaged += 1


def _values(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())
