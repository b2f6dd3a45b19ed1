"""Chunks of a shard: what decodes to a record, and nothing else does."""

from __future__ import annotations

import numcodecs  # type: ignore[import-untyped]
import numpy as np
import pytest

from storage import Array, Field, FormatError
from storage.shards import decode_chunk


@pytest.mark.parametrize("num_bytes", [1, 10, 99, 101, 500, 1 << 26])
def test_a_compressed_chunk_of_more_or_less_than_one_record_is_refused(num_bytes: int) -> None:
    array = Array("x", (Field("x.y", (100,), "int8"),), "zstd")
    raw = compressed(num_bytes)
    with pytest.raises(FormatError, match="a chunk is not 100 bytes"):
        decode_chunk(memoryview(raw), array)
    assert decode_chunk(memoryview(compressed(100)), array).sum() == 100
    with pytest.raises(FormatError, match="a chunk is not 100 bytes"):
        decode_chunk(memoryview(b"no zstd at all"), array)


@pytest.mark.parametrize("num_bytes", [1, 255, 256, 257, 65_791, 65_792, 1 << 20])
@pytest.mark.parametrize("noisy", [False, True])
def test_compressed_chunks_of_every_form_of_header_are_read(num_bytes: int, noisy: bool) -> None:
    array = Array("x", (Field("x.y", (num_bytes,), "uint8"),), "zstd")
    rng = np.random.default_rng(0)
    data = rng.integers(0, 256 if noisy else 1, num_bytes, dtype=np.uint8)
    raw = bytes(numcodecs.Zstd().encode(data)) + b"\0" * 4
    assert (decode_chunk(memoryview(raw), array) == data).all()


@pytest.mark.parametrize("stated", [1, 2, 4, 8])
def test_a_compressed_chunk_that_misstates_its_size_is_refused(stated: int) -> None:
    array = Array("x", (Field("x.y", (300,), "uint8"),), "zstd")
    raw = bytearray(numcodecs.Zstd().encode(np.zeros(299, dtype=np.uint8)))
    assert raw[4] >> 6 == 1  # two bytes, less 256
    raw[5 if raw[4] & 0x20 else 6] += stated
    with pytest.raises(FormatError, match=r"does not decompress|is not 300 bytes"):
        decode_chunk(memoryview(bytes(raw) + b"\0" * 4), array)


def test_compressed_chunks_without_a_stated_size_are_refused() -> None:
    array = Array("x", (Field("x.y", (100,), "int8"),), "zstd")
    raw = bytearray(compressed(100))
    raw[4] &= 0x1F  # no size, and not a single segment
    with pytest.raises(FormatError, match="is not 100 bytes"):
        decode_chunk(memoryview(bytes(raw)), array)


def compressed(num_bytes: int) -> bytes:
    """A chunk of ones, with room for its CRC."""
    return bytes(numcodecs.Zstd().encode(np.ones(num_bytes, dtype=np.int8))) + b"\0" * 4
