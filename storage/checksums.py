"""The three digests of the format, each for one purpose.

XXH3-128 proves a whole object (as fast as memory), CRC32C one chunk of it (a CPU instruction, and
the zarr codec of that name stores the same number), SHA-256 the metadata and the identity of a
cache (nobody can make two that agree).
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

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


def crc32c(data: bytes | memoryview) -> int:
    """Return the CRC32C (Castagnoli) of contiguous bytes, without copying them."""
    # google_crc32c takes bytes and arrays, but no memoryview.
    return int(google_crc32c.value(np.frombuffer(data, dtype=np.uint8)))
