"""The three digests of the format, each for one purpose.

XXH3-128 proves a whole object (as fast as memory), CRC32C one chunk of it (a CPU instruction, and
the zarr codec of that name stores the same number), SHA-256 the metadata and the identity of a
cache (nobody can make two that agree).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import crc32c as crc32c_of_the_cpu
import numpy as np
import xxhash
from numpy.typing import NDArray

CRC_BYTES = 4
# Bytes that stay in a core's cache from one digest to the next, and until they are written. No step
# on a block holds Python's lock, but each asks for it again: smaller ones let writers that run side
# by side wait for each other.
_BLOCK = 1 << 20


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


class DigestedBlocks:
    """Pieces of memory with the CRC32C behind each, given in blocks that are digested on the way.

    A block goes into the XXH3-128 first, then into the CRC32C of its piece, and then to whoever
    takes it. So memory that fails after the first leaves other bytes than those of that hash: to
    read back what was put, and to hash it, is enough, and needs no second look at the CRCs.

    Can be iterated again, from the beginning.

    Attributes:
        size: bytes of all blocks.
        crcs: of the pieces that were given whole.
    """

    def __init__(self, pieces: Sequence[NDArray[np.uint8]]) -> None:
        """Args: pieces, each contiguous; they must not change before the last block is taken."""
        self._pieces = pieces
        self.size = sum(len(piece) + CRC_BYTES for piece in pieces)
        self.crcs: list[int] = []
        self._xxh3_128 = xxhash.xxh3_128()

    def __iter__(self) -> Iterator[memoryview]:
        self.crcs, self._xxh3_128 = [], xxhash.xxh3_128()
        for piece in self._pieces:
            crc = 0
            for start in range(0, len(piece), _BLOCK):
                block = piece[start : start + _BLOCK].data
                self._xxh3_128.update(block)
                crc = crc32c(block, crc)
                yield block
            self.crcs.append(crc)
            sealed = memoryview(crc.to_bytes(CRC_BYTES, "little"))
            self._xxh3_128.update(sealed)
            yield sealed

    def whole(self) -> memoryview:
        """All blocks in one memory, and so digested."""
        memory, filled = np.empty(self.size, dtype=np.uint8), 0
        for block in self:
            memory[filled : filled + len(block)] = block
            filled += len(block)
        return memory.data.toreadonly()

    def xxh3_128(self) -> str:
        """The XXH3-128 of the blocks, all of which have been taken."""
        assert len(self.crcs) == len(self._pieces), "blocks are left"
        return self._xxh3_128.hexdigest()
