"""A batch in one piece of memory, on its way from a data worker to the device.

A worker hands over each tensor through a file descriptor of its own, the loader's thread pins each
by itself, and each is a copy to the GPU: a dozen of everything for an image, paid for in the time
of the process that trains. In one piece there is one of each for a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.utils.data import get_worker_info

Batch = list[dict[str, Any]]

# What a view of another type needs, and what processors and GPUs like to read from.
_ALIGNMENT = 64


@dataclass(frozen=True)
class _Place:
    """Where a tensor lies in the memory of its batch, in bytes."""

    start: int
    dtype: torch.dtype
    shape: torch.Size

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


def pack_in_worker(items: Batch) -> Batch | PackedBatch:
    """Collate a batch: packed into shared memory in a data worker, as it is elsewhere."""
    return items if get_worker_info() is None else pack(items, shared=True)


def pack(items: Batch, *, shared: bool) -> PackedBatch:
    """Copy the tensors of a batch into one memory.

    Args:
        items: of dicts, tensors, ground truth (`Instances`, `Boxes`) and anything else, which
            stays as it is.
        shared: take memory that other processes can map.
    """
    tensors: list[tuple[_Place, Tensor]] = []
    end = 0

    def place(tensor: Tensor) -> _Place:
        nonlocal end
        found = _Place(-(-end // _ALIGNMENT) * _ALIGNMENT, tensor.dtype, tensor.shape)
        tensors.append((found, tensor))
        end = found.end
        return found

    placed = [_with_tensors(item, place) for item in items]
    memory = torch.empty(0, dtype=torch.uint8)
    if shared:
        memory.set_(torch.UntypedStorage._new_shared(end))  # as PyTorch's own collation does
    else:
        memory.resize_(end)
    for where, tensor in tensors:
        where.of(memory).copy_(tensor)
    return PackedBatch(placed, memory)


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
