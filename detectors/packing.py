"""A batch in one piece of memory, on its way from a data worker to the device.

A worker hands over each tensor through a file descriptor of its own, the loader's thread pins each
by itself, and each is a copy to the GPU: a dozen of everything for an image, paid for in the time
of the process that trains. In one piece there is one of each for a batch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.multiprocessing import get_sharing_strategy
from torch.utils.data import get_worker_info

from .pinned import pinned_empty
from .workers import SHARED_MEMORY, WorkerError

Batch = list[dict[str, Any]]

# What a view of another type needs, and what processors and GPUs like to read from.
_ALIGNMENT = 64
# Linux, where PyTorch shares memory by descriptors of files there.
_SHARES_FILES = hasattr(os, "O_TMPFILE") and SHARED_MEMORY.is_dir()


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in the memory of its batch, in bytes."""

    start: int
    dtype: torch.dtype
    shape: torch.Size

    @classmethod
    def behind(cls, end: int, tensor: Tensor) -> _Place:
        """The next place for a tensor, given where the last one ends."""
        return cls(-(-end // _ALIGNMENT) * _ALIGNMENT, tensor.dtype, tensor.shape)

    @property
    def end(self) -> int:
        return self.start + math.prod(self.shape) * self.dtype.itemsize

    def of(self, memory: Tensor) -> Tensor:
        """The tensor, a view of the memory."""
        return memory[self.start : self.end].view(self.dtype).view(self.shape)


@dataclass(frozen=True)
class PackedBatch:
    """The items of a batch with places in one memory in the place of their tensors.

    Attributes:
        items: as the loader gives them, but for the tensors.
        memory: (bytes,) uint8.
    """

    items: Batch
    memory: Tensor

    def pin_memory(self) -> PackedBatch:
        """The same in page-locked memory; the loader's pinning thread calls this."""
        return replace(self, memory=self.memory.pin_memory())

    def to(self, device: torch.device) -> PackedBatch:
        """The same on a device, by one copy that does not wait."""
        return replace(self, memory=self.memory.to(device, non_blocking=True))

    def unpack(self) -> Batch:
        """The items, with views of the memory."""
        return [_with_tensors(item, lambda place: place.of(self.memory)) for item in self.items]


def pack_in_worker(items: Iterable[dict[str, Any]]) -> Batch | PackedBatch:
    """Collate a batch: packed into shared memory in a data worker, as it is elsewhere."""
    return list(items) if get_worker_info() is None else pack(items, shared=True)


def pack(
    items: Iterable[dict[str, Any]], *, shared: bool, page_locked: bool = False
) -> PackedBatch:
    """Copy the tensors of a batch into one memory.

    Args:
        items: of dicts, tensors, ground truth (`Instances`, `Boxes`) and anything else, which
            stays as it is. Each may be made when it is asked for: where shared memory is a file,
            one at a time is held.
        shared: take memory that other processes can map.
        page_locked: take memory from which a GPU copies while the host goes on; not with `shared`.

    Raises:
        WorkerError: no shared memory is left.
        HostMemoryError: no memory can be page-locked.
    """
    if shared and _SHARES_FILES and get_sharing_strategy() == "file_descriptor":
        with _SharedFile() as file:
            # Not a comprehension, whose variable would keep an item while the next one is made.
            placed = list(map(partial(_with_tensors, change=file.append), items))
            return PackedBatch(placed, file.memory())
    tensors: list[tuple[_Place, Tensor]] = []

    def place(tensor: Tensor) -> _Place:
        tensors.append((_Place.behind(tensors[-1][0].end if tensors else 0, tensor), tensor))
        return tensors[-1][0]

    placed = [_with_tensors(one, place) for one in items]
    end = tensors[-1][0].end if tensors else 0
    if page_locked:
        memory = pinned_empty((end,), torch.uint8, "lower SOLVER.IMS_PER_BATCH")
    else:
        memory = torch.empty(0 if shared else end, dtype=torch.uint8)
    if shared:
        memory.set_(torch.UntypedStorage._new_shared(end))  # as PyTorch's own collation does
    for where, tensor in tensors:
        where.of(memory).copy_(tensor)
    return PackedBatch(placed, memory)


class _SharedFile:
    """A file without a name in shared memory, which tensors are written to one by one.

    To copy them into mapped memory takes three times as long: each of its pages would be mapped and
    cleared first, and the worker has no further use for them.
    """

    def __init__(self) -> None:
        self._file = os.open(SHARED_MEMORY, os.O_TMPFILE | os.O_RDWR, 0o600)
        self._end = 0

    def __enter__(self) -> _SharedFile:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)  # the memory has a descriptor of its own

    def append(self, tensor: Tensor) -> _Place:
        """Write a tensor behind the others."""
        place = _Place.behind(self._end, tensor)
        data = tensor.contiguous().view(-1).view(torch.uint8).numpy().data
        start, self._end = place.start, place.end
        while data:
            try:
                count = os.pwrite(self._file, data, start)
            except OSError as error:
                raise WorkerError(f"shared memory cannot be written ({error.strerror})") from error
            start, data = start + count, data[count:]
        return place

    def memory(self) -> Tensor:
        """All that was written, (bytes,) uint8 in memory that other processes can map."""
        os.ftruncate(self._file, self._end)
        memory = torch.empty(0, dtype=torch.uint8)
        if self._end:
            storage: Any = torch.UntypedStorage
            memory.set_(storage._new_shared_fd_cpu(self._file, self._end))
        return memory


def _with_tensors(value: Any, change: Callable[[Any], Any]) -> Any:
    """The value with each tensor in it, or each place of one, changed."""
    if isinstance(value, Tensor | _Place):
        return change(value)
    if isinstance(value, Boxes):
        return _PackedBoxes(change(value.tensor))
    if isinstance(value, _PackedBoxes):
        return Boxes(change(value.place))
    if isinstance(value, Instances):
        fields = {name: _with_tensors(one, change) for name, one in value.get_fields().items()}
        return _PackedInstances(value.image_size, fields)
    if isinstance(value, _PackedInstances):
        fields = {name: _with_tensors(one, change) for name, one in value.fields.items()}
        return Instances(value.image_size, **fields)
    if isinstance(value, dict):
        return {name: _with_tensors(one, change) for name, one in value.items()}
    return value


@dataclass(frozen=True)
class _PackedBoxes:
    """`Boxes`, which insist on a tensor."""

    place: _Place


@dataclass(frozen=True)
class _PackedInstances:
    """`Instances`, which insist on fields with a length."""

    image_size: tuple[int, int]
    fields: dict[str, Any]
