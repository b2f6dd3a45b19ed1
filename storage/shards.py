"""A shard's bytes, which are a zarr shard: encoded, taken apart into chunks, and decoded again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numcodecs import Zstd  # type: ignore[import-untyped]
from numpy.typing import NDArray

from storage import checksums
from storage.commit import StoredObject
from storage.errors import FormatError
from storage.layout import CRC_BYTES, ZSTD_LEVEL
from storage.schema import Array

_INDEX_ENTRY = 16
_ABSENT = np.iinfo(np.uint64).max  # offset and length of a chunk that is not there
_ZSTD = Zstd(level=ZSTD_LEVEL)
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_HEADER = 18  # bytes at most


def encode_shard(
    array: Array,
    shard_records: int,
    data: NDArray[np.uint8],
    positions: NDArray[np.int64],
    *,
    kept: bool = False,
) -> tuple[memoryview, StoredObject]:
    """Encode one array of a shard, byte for byte as zarr does, and digest it on the way.

    Without zarr, whose event loop all writers of a process would share, and which copies each byte
    several times. Nothing large happens under Python's lock, so writers can run side by side.

    Args:
        array: what is encoded.
        shard_records: records of a full shard.
        data: (n, B) bytes of n records.
        positions: (n,) ascending, where they lie in the shard; the others stay absent.
        kept: return bytes in memory that this thread's next call may take.

    Returns:
        The object's bytes, and what its commit says of them.
    """
    pieces = [_encode_record(array, record) for record in data]
    chunks = np.zeros((len(pieces), 3), dtype=np.int64)
    chunks[:, 1] = [len(piece) + CRC_BYTES for piece in pieces]
    chunks[1:, 0] = chunks[:-1, 1].cumsum()
    size = int(chunks[:, 1].sum()) + table_bytes(shard_records)
    buffer = checksums.DigestedBuffer(size, kept=kept)
    chunks[:, 2] = [buffer.append(piece) for piece in pieces]
    table = np.full((shard_records, 2), _ABSENT, dtype="<u8")
    table[positions] = chunks[:, :2]
    buffer.append(table.reshape(-1).view(np.uint8))
    raw, digest = buffer.finish()
    return raw, StoredObject(len(raw), digest, chunks)


def _encode_record(array: Array, record: NDArray[np.uint8]) -> NDArray[np.uint8]:
    record = np.ascontiguousarray(record)
    if array.compression == "zstd":
        return np.frombuffer(_ZSTD.encode(record), dtype=np.uint8)
    return record


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
