"""Reading what a GPU computes while the host goes on launching."""

from __future__ import annotations

import torch
from torch import Tensor


class Readback:
    """Copies of tensors on the host, begun at once and waited for when they are wanted.

    An ordinary copy waits for everything that was launched before it, and the GPU then waits for
    the host. This one is asked for as soon as the values are launched; the host launches more work
    and waits for these values alone.
    """

    def __init__(self, *tensors: Tensor) -> None:
        """Args: tensors, whose values at this point of the stream are meant."""
        self._copies = [tensor.detach().to("cpu", non_blocking=True) for tensor in tensors]
        self._event: torch.cuda.Event | None = None
        if any(tensor.is_cuda for tensor in tensors):
            self._event = torch.cuda.Event()
            self._event.record()

    def wait(self) -> list[Tensor]:
        """The values, on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._copies
