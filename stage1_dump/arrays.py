"""One shard's arrays on the host, filled batch by batch without waiting for the device."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors.pinned import pinned_empty
from storage import Array
from storage.codecs.record import joined
from storage.schema import PIXEL_FIELDS, PIXELS_CRC, RECORD


class ShardArrays:
    """Room for the n records of one shard, filled in slot order.

    A signal's fields are joined on the device, and so are one copy; those of the array `record`,
    some of which the host computes, are joined at the end. Not to be read before `finish`, which
    waits for the copies that are still under way.
    """

    def __init__(self, arrays: Sequence[Array], num_records: int, device: torch.device) -> None:
        """Args: the arrays of the bucket, n, and the device that the codes come from."""
        self._arrays = [one for one in arrays if one.name != RECORD]
        (self._record,) = (one for one in arrays if one.name == RECORD)
        self._small = {one.name for one in self._record.fields}
        self._num_records = num_records
        self._on_gpu = device.type == "cuda"
        self._tensors: dict[str, Tensor] = {}
        self._pixels: dict[str, NDArray[Any]] = {}
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
        small = {name: code for name, code in codes.items() if name in self._small}
        for name, code in (*joined(self._arrays, codes), *small.items()):
            if name not in self._tensors:
                shape = (self._num_records, *code.shape[1:])
                self._tensors[name] = self._room(shape, code.dtype)
            self._tensors[name][self._filled : end].copy_(code, non_blocking=self._on_gpu)
        for name, values in pixels.items():
            room = (self._num_records, *values.shape[1:])
            self._pixels.setdefault(name, np.zeros(room, values.dtype))[self._filled : end] = values
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
        """Wait for the device and return every array, (n, B) uint8 each."""
        assert self._filled == self._num_records, "a batch of the shard is missing"
        if self._copied is not None:
            self._copied.synchronize()
        found = {name: tensor.numpy() for name, tensor in self._tensors.items()}
        record = {name: found.pop(name) for name in self._small & found.keys()}
        return {**found, RECORD: self._record.join({**record, **self._pixels})}


def copied_bytes(arrays: Sequence[Array]) -> list[int]:
    """Bytes of one record in each block of memory that a bucket's codes are copied to."""
    blocks: list[int] = []
    for array in arrays:
        small = [one for one in array.fields if one not in PIXEL_FIELDS]
        blocks += [one.num_bytes for one in (small if array.name == RECORD else [array])]
    return blocks
