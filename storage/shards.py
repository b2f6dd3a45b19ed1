"""A shard's bytes: encoded by zarr in memory, taken apart into chunks, and decoded again."""

from __future__ import annotations

from typing import Any

import numpy as np
import zarr
from numcodecs import Zstd  # type: ignore[import-untyped]
from numpy.typing import NDArray
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from storage import checksums
from storage.commit import StoredObject
from storage.errors import FormatError
from storage.layout import CRC_BYTES, ROOT_KEY, array_json
from storage.schema import Array

_INDEX_ENTRY = 16
_ABSENT = np.iinfo(np.uint64).max  # offset and length of a chunk that is not there
_ZSTD = Zstd()
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_HEADER = 18  # bytes at most


def encode_shard(
    array: Array, shard_records: int, data: NDArray[np.uint8], positions: NDArray[np.int64]
) -> bytes:
    """Encode one array of a shard as a zarr v3 shard.

    zarr reads the old shard before it replaces one, and chokes on a damaged one: so it writes into
    memory here, and the bytes are put in place in one step.

    Args:
        array: what is encoded.
        shard_records: records of a full shard.
        data: (n, B) bytes of n records.
        positions: (n,) ascending, where they lie in the shard; the others stay absent.
    """
    if not len(positions):  # zarr would store nothing
        return _table(np.full((shard_records, 2), _ABSENT, dtype="<u8"))
    metadata = array_json(array, shard_records, shard_records)
    buffer = default_buffer_prototype().buffer.from_bytes(metadata)
    memory = MemoryStore({ROOT_KEY: buffer})
    # Without write_empty_chunks, a record of zeros would not be stored. (open_array takes the
    # setting too, but ignores it for an array that exists.)
    target = zarr.open_array(memory, mode="r+").with_config({"write_empty_chunks": True})
    target[: len(data)] = data
    raw = memory._store_dict["c/0/0"].to_bytes()
    return raw if len(positions) == positions[-1] + 1 else _spread(raw, positions, shard_records)


def _spread(raw: bytes, positions: NDArray[np.int64], shard_records: int) -> bytes:
    """Move the records of a shard, which fill its first slots, to `positions`.

    Their chunks stay where they are: only zarr's table says which is which. (To write them there
    by zarr's orthogonal indexing fails in its sharding codec.)
    """
    table = np.full((shard_records, 2), _ABSENT, dtype="<u8")
    table[positions] = chunk_table(raw, shard_records)[: len(positions)]
    return raw[: -table_bytes(shard_records)] + _table(table)


def _table(entries: NDArray[np.uint64]) -> bytes:
    table = entries.tobytes()
    return table + checksums.crc32c(table).to_bytes(CRC_BYTES, "little")


def describe(raw: bytes, positions: NDArray[np.int64], shard_records: int) -> StoredObject:
    """Digest an encoded shard and find its chunks.

    Raises:
        FormatError: it does not hold exactly the records at `positions`.
    """
    entries = chunks_at(chunk_table(raw, shard_records), positions)
    chunks = np.empty((len(positions), 3), dtype=np.int64)
    chunks[:, :2] = entries
    for chunk in chunks:
        start, length = int(chunk[0]), int(chunk[1])
        chunk[2] = checksums.crc32c(memoryview(raw)[start : start + length - CRC_BYTES])
    return StoredObject(len(raw), checksums.xxh3_128([raw]), chunks)


def table_bytes(shard_records: int) -> int:
    """Bytes of the table of chunks that ends an object; a shard that is not full has it whole."""
    return shard_records * _INDEX_ENTRY + CRC_BYTES


def chunk_table(raw: bytes, shard_records: int) -> NDArray[np.uint64]:
    """Return zarr's table of a shard: (shard_records, 2) uint64 offset and length.

    Raises:
        FormatError: the shard is too short or the table's CRC32C does not match.
    """
    size = shard_records * _INDEX_ENTRY
    table = raw[-size - CRC_BYTES : -CRC_BYTES]
    stored = int.from_bytes(raw[-CRC_BYTES:], "little")
    if len(table) != size or checksums.crc32c(table) != stored:
        raise FormatError("a shard's own chunk table is damaged")
    return np.frombuffer(table, dtype="<u8").reshape(shard_records, 2)


def chunks_at(table: NDArray[np.uint64], positions: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the (n, 2) entries of a chunk table for the only records that it has.

    Raises:
        FormatError: the table has others, or lacks some.
    """
    present = np.flatnonzero((table != _ABSENT).any(axis=1))
    if not np.array_equal(present, positions):
        raise FormatError(
            f"the object's own table has {len(present)} records, not the {len(positions)} of its"
            " shard"
        )
    return table[positions].astype(np.int64)


def decode_chunk(raw: memoryview, array: Array) -> NDArray[np.uint8]:
    """Decode one record's chunk, whose CRC32C has been checked, to its (B,) bytes.

    What is not compressed stays where it is; decompressing holds no lock, so threads can share it.

    Raises:
        FormatError: it does not decode to one record of the array.
    """
    data: Any = raw[:-CRC_BYTES]
    if array.compression == "zstd":
        # What a frame holds is what its header says, or it does not decompress: so nothing larger
        # is ever allocated, and nothing smaller leaves a part of the record unwritten.
        if _content_bytes(bytes(data[:_ZSTD_HEADER])) != array.num_bytes:
            raise FormatError(f"{array.name}: a chunk is not {array.num_bytes} bytes")
        out = np.empty(array.num_bytes, dtype=np.uint8)
        try:
            data = _ZSTD.decode(data, out)
        except (RuntimeError, ValueError) as error:
            raise FormatError(f"{array.name}: a chunk does not decompress ({error})") from error
    if memoryview(data).nbytes != array.num_bytes:
        raise FormatError(f"{array.name}: a chunk is not {array.num_bytes} bytes")
    return np.frombuffer(data, dtype=np.uint8)


def _content_bytes(header: bytes) -> int | None:
    """Return the size of the data in a zstd frame, as the frame's header states it (RFC 8878, 3.1).

    Returns:
        None if it is no frame, or the header states no size, which the writer's always does.
    """
    if header[:4] != _ZSTD_MAGIC or len(header) < 6:
        return None
    descriptor = header[4]
    single = bool(descriptor & 0x20)
    start = 5 + (0 if single else 1) + (0, 1, 2, 4)[descriptor & 3]
    width = (1 if single else 0, 2, 4, 8)[descriptor >> 6]
    stated = header[start : start + width]
    if not width or len(stated) < width:
        return None
    return int.from_bytes(stated, "little") + (256 if width == 2 else 0)
