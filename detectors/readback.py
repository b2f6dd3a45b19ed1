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
        """Args: tensors of the host or of one GPU, as they are at this point of its stream."""
        self._copies = [tensor.detach().to("cpu", non_blocking=True) for tensor in tensors]
        self._event: torch.cuda.Event | None = None
        # Their own GPU: an event is else recorded on the current one, and waits for nothing.
        on = next((tensor.device for tensor in tensors if tensor.is_cuda), None)
        if on is not None:
            self._event = torch.cuda.current_stream(on).record_event()

    def wait(self) -> list[Tensor]:
        """The values, on the host."""
        if self._event is not None:
            self._event.synchronize()
        return self._copies
