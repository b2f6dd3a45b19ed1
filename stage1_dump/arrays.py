"""One shard's arrays on the host, filled batch by batch without waiting for the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PIXELS_FIELD = "pixels_crc32c"


class ShardArrays:
    """Room for the n records of one shard, filled in slot order.

    Not to be read before `finish`, which waits for the copies that are still under way.
    """

    def __init__(self, num_records: int, stream: torch.cuda.Stream | None) -> None:
        """Args: n, and the side stream for copies from a GPU; None for codes of the CPU."""
        self._num_records = num_records
        self._stream = stream
        self._tensors: dict[str, Tensor] = {}
        self._crc32c = np.zeros(num_records, dtype=np.uint32)
        self._filled = 0
        self._copied = torch.cuda.Event() if stream is not None else None

    def append(self, codes: Mapping[str, Tensor], crc32c: Sequence[int]) -> None:
        """Add the records of one batch.

        Args:
            codes: field name to a tensor with leading dimension N, on the device.
            crc32c: N checksums of the views' pixels.
        """
        end = self._filled + len(crc32c)
        for name, code in codes.items():
            if name not in self._tensors:
                shape = (self._num_records, *code.shape[1:])
                # Page-locked, so that the copy runs beside the next forward. PyTorch keeps such
                # memory for the next shard.
                self._tensors[name] = torch.empty(
                    shape, dtype=code.dtype, pin_memory=self._stream is not None
                )
            self._copy(code, self._tensors[name][self._filled : end])
        self._crc32c[self._filled : end] = crc32c
        self._filled = end

    def _copy(self, code: Tensor, target: Tensor) -> None:
        if self._stream is None:
            target.copy_(code)
            return
        assert self._copied is not None
        # The codes are there only when the kernels launched so far are done.
        self._stream.wait_stream(torch.cuda.current_stream(code.device))
        with torch.cuda.stream(self._stream):
            target.copy_(code, non_blocking=True)
        # Else the next batch could get this memory while it is still being read.
        code.record_stream(self._stream)
        self._copied.record(self._stream)

    def finish(self) -> dict[str, NDArray[Any]]:
        """Wait for the device and return every field, (n, ...) each."""
        assert self._filled == self._num_records, "a batch of the shard is missing"
        if self._copied is not None:
            self._copied.synchronize()
        arrays = {name: tensor.numpy() for name, tensor in self._tensors.items()}
        return {**arrays, PIXELS_FIELD: self._crc32c}
