"""Shards are byte for byte zarr's; what decodes to a record, and that nothing else does."""

from __future__ import annotations

from typing import Any

import numcodecs  # type: ignore[import-untyped]
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from storage import Array, Field, FormatError, checksums
from storage.checksums import CRC_BYTES
from storage.layout import ROOT_KEY, array_json
from storage.shards import EncodedShard, chunk_table, chunks_at, decode_chunk

NUM_BYTES, SHARD_RECORDS = 3000, 5
COMPRESSIONS = pytest.mark.parametrize("compression", [None, "zstd"])


def array_of(compression: str | None) -> Array:
    return Array("x", (Field("x.y", (NUM_BYTES,), "uint8"),), compression)


def make_records(count: int) -> NDArray[np.uint8]:
    """Records that compress, to different lengths; the second is all zeros."""
    rng = np.random.default_rng(0)
    data = rng.integers(0, 2 + np.arange(count)[:, None], (count, NUM_BYTES)).astype(np.uint8)
    data[1:2] = 0
    return data


def open_with_zarr(array: Array, shard: bytes | None = None) -> tuple[MemoryStore, zarr.Array[Any]]:
    """Open an array of one shard by zarr alone."""
    from_bytes = default_buffer_prototype().buffer.from_bytes
    objects = {ROOT_KEY: array_json(array, SHARD_RECORDS, SHARD_RECORDS)}
    objects |= {} if shard is None else {"c/0/0": shard}
    store = MemoryStore({key: from_bytes(data) for key, data in objects.items()})
    # Otherwise zarr would not store a record of zeros.
    return store, zarr.open_array(store, mode="r+").with_config({"write_empty_chunks": True})


@COMPRESSIONS
@pytest.mark.parametrize("count", range(1, SHARD_RECORDS + 1))
def test_a_shard_is_byte_for_byte_what_zarr_writes(compression: str | None, count: int) -> None:
    array, data = array_of(compression), make_records(count)
    store, by_zarr = open_with_zarr(array)
    by_zarr[:count] = data
    raw = EncodedShard(array, SHARD_RECORDS, data, np.arange(count)).blocks.whole()
    assert bytes(raw) == store._store_dict["c/0/0"].to_bytes()


@COMPRESSIONS
@pytest.mark.parametrize("positions", [[], [0], [4], [1, 3], [0, 1, 4], [0, 1, 2, 3, 4]])
def test_zarr_reads_a_shard_with_gaps(compression: str | None, positions: list[int]) -> None:
    array, data = array_of(compression), make_records(len(positions))
    raw = EncodedShard(array, SHARD_RECORDS, data, np.array(positions, dtype=int)).blocks.whole()
    expected = np.zeros((SHARD_RECORDS, NUM_BYTES), dtype=np.uint8)
    expected[positions] = data
    _, by_zarr = open_with_zarr(array, bytes(raw))
    np.testing.assert_array_equal(by_zarr[:], expected)


@COMPRESSIONS
@pytest.mark.parametrize("positions", [[], [1, 3], [0, 1, 2, 3, 4]])
def test_what_is_said_of_a_shard_is_true(compression: str | None, positions: list[int]) -> None:
    array, data = array_of(compression), make_records(len(positions))
    encoded = EncodedShard(array, SHARD_RECORDS, data, np.array(positions, dtype=np.int64))
    raw, stored = encoded.blocks.whole(), encoded.described()
    assert encoded.chunk_bytes == stored.chunks[:, 1].sum()
    assert (stored.size, stored.xxh3_128) == (len(raw), checksums.xxh3_128([raw]))
    table = chunks_at(chunk_table(bytes(raw), SHARD_RECORDS), np.array(positions, dtype=np.int64))
    np.testing.assert_array_equal(stored.chunks[:, :2], table)
    for (start, length, crc), record in zip(stored.chunks.tolist(), data, strict=True):
        chunk = raw[start : start + length]
        assert checksums.crc32c(chunk[:-CRC_BYTES]) == crc
        assert int.from_bytes(chunk[-CRC_BYTES:], "little") == crc
        assert (decode_chunk(chunk, array) == record).all()


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
