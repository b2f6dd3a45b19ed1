"""Page-locked host memory, from which PyTorch copies to and from a GPU beside the computation.

What a step sends to the GPU by `.to(device, non_blocking=True)` need not lie there while it has at
most 64 KB: CUDA takes that much of any host memory at once, into a buffer of its own, and copies it
in its turn. For more than that it may wait until the GPU has done everything before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from heapq import nlargest
from typing import TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class HostMemoryError(OSError):
    """Memory of this machine could not be page-locked; the message says what to change."""


def block_bytes(size_bytes: int) -> int:
    """Bytes that PyTorch takes for one page-locked tensor: the next power of two."""
    return 1 << (size_bytes - 1).bit_length() if size_bytes > 0 else 0


def kept_bytes(groups: Iterable[Sequence[int]], alive: int) -> int:
    """Bytes that PyTorch holds page-locked at most.

    It gives no block back, but hands it to the next tensor of the same rounded size.

    Args:
        groups: bytes of the tensors that are there together, for each group.
        alive: groups that are there at once.
    """
    counts: dict[int, list[int]] = {}
    for group in groups:
        for block, count in Counter(block_bytes(size) for size in group).items():
            counts.setdefault(block, []).append(count)
    return sum(block * sum(nlargest(alive, found)) for block, found in counts.items())


def pinned_empty(shape: Sequence[int], dtype: torch.dtype, remedy: str) -> Tensor:
    """An uninitialised page-locked tensor.

    Args:
        shape, dtype: of the tensor.
        remedy: what to change where there is no room.

    Raises:
        HostMemoryError: it cannot be page-locked.
    """
    try:
        return torch.empty(tuple(shape), dtype=dtype, pin_memory=True)
    except RuntimeError as error:
        if "out of memory" not in str(error):
            raise
        size = torch.Size(shape).numel() * dtype.itemsize
        raise _error(f"{block_bytes(size) / 1e6:,.0f} MB more of", remedy) from error


def naming_pinning(batches: Iterator[T], remedy: str) -> Iterator[T]:
    """The batches of a loader that page-locks them in a thread.

    Raises:
        HostMemoryError: they cannot be page-locked.
    """
    while True:
        try:
            batch = next(batches)
        except StopIteration:
            return
        except RuntimeError as error:
            text = str(error)
            if "pin memory thread" not in text or "out of memory" not in text:
                raise
            raise _error("more", remedy) from error
        yield batch


def _error(amount: str, remedy: str) -> HostMemoryError:
    return HostMemoryError(
        f"{amount} host memory could not be page-locked for copies to and from the GPU (the "
        f"machine's or the container's memory, not the GPU's, or `ulimit -l`); {remedy}"
    )
