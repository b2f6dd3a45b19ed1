"""A shard's bytes, which are a zarr shard: encoded, taken apart into chunks, and decoded again."""

from __future__ import annotations

from typing import Any

import numpy as np
from numcodecs import Zstd  # type: ignore[import-untyped]
from numpy.typing import NDArray

from storage import checksums
from storage.checksums import CRC_BYTES
from storage.commit import StoredObject
from storage.errors import FormatError
from storage.layout import ZSTD_LEVEL
from storage.schema import Array

_INDEX_ENTRY = 16
_ABSENT = np.iinfo(np.uint64).max  # offset and length of a chunk that is not there
_ZSTD = Zstd(level=ZSTD_LEVEL)
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_HEADER = 18  # bytes at most


class EncodedShard:
    """One array of a shard, byte for byte as zarr has it, in blocks that are digested as they go.

    Without zarr, whose event loop all writers of a process would share, and which copies each byte
    several times: here those that are not compressed go from where they lie to where they are put.

    Attributes:
        blocks: the object's bytes.
        chunk_bytes: of all chunks, with their CRC32Cs and without the table.
    """

    def __init__(
        self,
        array: Array,
        shard_records: int,
        data: NDArray[np.uint8],
        positions: NDArray[np.int64],
    ) -> None:
        """Compress the records, where the array is compressed.

        Args:
            array: what is encoded.
            shard_records: records of a full shard.
            data: (n, B) bytes of n records, which must not change before the blocks are taken.
            positions: (n,) ascending, where they lie in the shard; the others stay absent.
        """
        pieces = [_encode_record(array, record) for record in data]
        self._chunks = np.zeros((len(pieces), 3), dtype=np.int64)
        self._chunks[:, 1] = [len(piece) + CRC_BYTES for piece in pieces]
        self._chunks[1:, 0] = self._chunks[:-1, 1].cumsum()
        self.chunk_bytes = int(self._chunks[:, 1].sum())
        table = np.full((shard_records, 2), _ABSENT, dtype="<u8")
        table[positions] = self._chunks[:, :2]
        self.blocks = checksums.DigestedBlocks([*pieces, table.reshape(-1).view(np.uint8)])

    def described(self) -> StoredObject:
        """What a commit says of the object, all of whose blocks have been taken."""
        digest = self.blocks.xxh3_128()
        self._chunks[:, 2] = self.blocks.crcs[:-1]  # the last is that of the table
        return StoredObject(self.blocks.size, digest, self._chunks)


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
