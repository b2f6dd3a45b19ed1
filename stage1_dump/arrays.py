"""One shard's arrays on the host, filled batch by batch without waiting for the device."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.pinned import pinned_empty
from storage.schema import PIXEL_FIELDS, PIXELS_CRC


class ShardArrays:
    """Room for the n records of one shard, filled in slot order.

    Not to be read before `finish`, which waits for the copies that are still under way.
    """

    def __init__(self, num_records: int, device: torch.device) -> None:
        """Args: n, and the device that the codes come from."""
        self._num_records = num_records
        self._on_gpu = device.type == "cuda"
        self._tensors: dict[str, Tensor] = {}
        self._pixels = {
            one.name: np.zeros((num_records, *one.shape), one.dtype) for one in PIXEL_FIELDS
        }
        self._filled = 0
        self._copied = torch.cuda.Event() if self._on_gpu else None

    def append(self, codes: Mapping[str, Tensor], pixels: Mapping[str, NDArray[Any]]) -> None:
        """Add the records of one batch, by copies on the current stream of the device.

        Args:
            codes: field name to a tensor with leading dimension N, on the device.
            pixels: field name to the same of the views' pixels, on the host.

        Raises:
            HostMemoryError: there is no more memory to page-lock.
        """
        end = self._filled + len(pixels[PIXELS_CRC])
        for name, code in codes.items():
            if name not in self._tensors:
                shape = (self._num_records, *code.shape[1:])
                self._tensors[name] = self._room(shape, code.dtype)
            self._tensors[name][self._filled : end].copy_(code, non_blocking=self._on_gpu)
        for name, values in pixels.items():
            self._pixels[name][self._filled : end] = values
        self._filled = end
        if self._copied is not None:
            self._copied.record()

    def _room(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if not self._on_gpu:
            return torch.empty(shape, dtype=dtype)
        # Page-locked, so that the copy runs beside the next forward. PyTorch keeps such memory for
        # the next shard.
        return pinned_empty(
            shape, dtype, "start fewer ranks on this machine, or begin a cache of smaller shards"
        )

    def finish(self) -> dict[str, NDArray[Any]]:
        """Wait for the device and return every field, (n, ...) each."""
        assert self._filled == self._num_records, "a batch of the shard is missing"
        if self._copied is not None:
            self._copied.synchronize()
        arrays = {name: tensor.numpy() for name, tensor in self._tensors.items()}
        return {**arrays, **self._pixels}
