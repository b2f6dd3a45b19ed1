"""The three digests of the format, each for one purpose.

XXH3-128 proves a whole object (as fast as memory), CRC32C one chunk of it (a CPU instruction, and
the zarr codec of that name stores the same number), SHA-256 the metadata and the identity of a
cache (nobody can make two that agree).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import google_crc32c
import numpy as np
import xxhash


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


def xxh3_128_and_crc32cs(
    blocks: Iterable[bytes | memoryview], ranges: Sequence[tuple[int, int]]
) -> tuple[str, list[int]]:
    """Digest blocks, and compute the CRC32C of some ranges of them.

    Args:
        blocks: one after the other.
        ranges: first and last position + 1 of each, in bytes from the beginning of the first block;
            ascending, none overlaps another.

    Returns:
        The XXH3-128, and the CRC32C of each range.
    """
    digest = xxhash.xxh3_128()
    crcs = [0] * len(ranges)
    start, current = 0, 0
    for block in blocks:
        digest.update(block)
        data = np.frombuffer(block, dtype=np.uint8)
        stop = start + len(data)
        while current < len(ranges) and ranges[current][0] < stop:
            first, last = ranges[current]
            part = data[max(first - start, 0) : last - start]
            crcs[current] = google_crc32c.extend(crcs[current], part)
            if last > stop:  # the rest of it is in the next block
                break
            current += 1
        start = stop
    return digest.hexdigest(), crcs


def crc32c(data: bytes | memoryview) -> int:
    """Return the CRC32C (Castagnoli) of contiguous bytes, without copying them."""
    # google_crc32c takes bytes and arrays, but no memoryview.
    return int(google_crc32c.value(np.frombuffer(data, dtype=np.uint8)))
