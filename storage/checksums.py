"""The three digests of the format, each for one purpose.

XXH3-128 proves a whole object (as fast as memory), CRC32C one chunk of it (a CPU instruction, and
the zarr codec of that name stores the same number), SHA-256 the metadata and the identity of a
cache (nobody can make two that agree).
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterable, Iterator, Sequence

import crc32c as crc32c_of_the_cpu
import numpy as np
import xxhash
from numpy.typing import NDArray

# Bytes that stay in a core's cache from one digest to the next. No step on a block holds Python's
# lock, so that writers run side by side.
_BLOCK = 1 << 19
# The memory of each thread's last `DigestedBuffer` that is to be kept.
_KEPT = threading.local()


def sha256(*parts: bytes | memoryview) -> str:
    """Return the SHA-256 of the parts, one after the other, as 64 lower-case hex digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def xxh3_128(parts: Iterable[bytes | memoryview]) -> str:
    """Return the XXH3-128 of the parts, one after the other, as 32 lower-case hex digits."""
    digest = xxhash.xxh3_128()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def proven(blocks: Iterable[bytes | memoryview], expected: str) -> Iterator[bytes | memoryview]:
    """Pass blocks on, and at their end raise ValueError if `expected` is not their XXH3-128."""
    digest = xxhash.xxh3_128()
    for block in blocks:
        digest.update(block)
        yield block
    if digest.hexdigest() != expected:
        raise ValueError("its bytes are not those of the commit (XXH3-128)")


def xxh3_128_and_tails(
    blocks: Iterable[bytes | memoryview], ends: Sequence[int], width: int
) -> tuple[str, list[bytes]]:
    """Digest blocks, and pick some bytes out of them on the way.

    Args:
        blocks: one after the other.
        ends: ascending positions, in bytes from the beginning of the first block.
        width: how many bytes before each of `ends` to return.

    Returns:
        The XXH3-128, and the bytes before each end; none where the blocks do not reach it.
    """
    digest = xxhash.xxh3_128()
    tails: list[bytes] = []
    start, before = 0, b""
    for block in blocks:
        digest.update(block)
        stop = start + len(block)
        while len(tails) < len(ends) and ends[len(tails)] <= stop:
            last = ends[len(tails)] - start
            if last >= width:
                tails.append(bytes(block[last - width : last]))
            else:  # it begins in the block before
                tails.append((before + bytes(block[:last]))[-width:])
        before = (before + bytes(block[-width:]))[-width:]
        start = stop
    return digest.hexdigest(), tails + [b""] * (len(ends) - len(tails))


def crc32c(data: bytes | memoryview, before: int = 0) -> int:
    """Return the CRC32C (Castagnoli) of contiguous bytes, without copying them.

    Args:
        data: the bytes.
        before: the CRC32C of what they are a continuation of.
    """
    return crc32c_of_the_cpu.crc32c(data, before)


class DigestedBuffer:
    """Memory of a known size that is filled once, piece by piece, and digested on the way.

    Its XXH3-128 is that of the bytes as they were given, each CRC32C that of their copy in here.
    So memory that fails between the two digests, or after them, leaves a copy of another hash: to
    read back what was put, and to hash it, is enough, and needs no second look at the CRCs.
    """

    def __init__(self, size: int, *, kept: bool = False) -> None:
        """Args:

        size: bytes of all pieces, and four for the CRC32C behind each.
        kept: take the memory of this thread's last such buffer, whose bytes are gone then. Fresh
            memory of that size costs a writer of shards a tenth of its time: all of its pages
            are cleared first, and are given back behind it.
        """
        self._data = _kept_memory(size) if kept else np.empty(size, dtype=np.uint8)
        self._filled = 0
        self._xxh3_128 = xxhash.xxh3_128()

    def append(self, piece: NDArray[np.uint8]) -> int:
        """Add contiguous bytes, and their CRC32C behind them; return it."""
        crc = 0
        for start in range(0, len(piece), _BLOCK):
            crc = crc32c(self._copy(piece[start : start + _BLOCK]).data, crc)
        self._copy(np.frombuffer(crc.to_bytes(4, "little"), dtype=np.uint8))
        return crc

    def finish(self) -> tuple[memoryview, str]:
        """Return the bytes, all of which have been given, and their XXH3-128."""
        assert self._filled == len(self._data), "pieces of the buffer are missing"
        return self._data.data.toreadonly(), self._xxh3_128.hexdigest()

    def _copy(self, part: NDArray[np.uint8]) -> NDArray[np.uint8]:
        room = self._data[self._filled : self._filled + len(part)]
        room[:] = part
        self._xxh3_128.update(part.data)
        self._filled += len(part)
        return room


def _kept_memory(size: int) -> NDArray[np.uint8]:
    memory: NDArray[np.uint8] | None = getattr(_KEPT, "memory", None)
    if memory is None or len(memory) < size:
        _KEPT.memory = memory = np.empty(size, dtype=np.uint8)
    return memory[:size]
