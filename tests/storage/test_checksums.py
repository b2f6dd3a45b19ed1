"""The digests that are taken block by block equal those of the whole."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from storage import checksums


def blocks_of(data: bytes, size: int) -> list[memoryview]:
    return [memoryview(data)[start : start + size] for start in range(0, len(data), size)]


@given(st.binary(max_size=60), st.integers(1, 20), st.lists(st.integers(1, 70), max_size=6))
def test_the_tails_are_what_lies_before_the_ends(data: bytes, block: int, ends: list[int]) -> None:
    ends = [4 + end for end in sorted(ends)]
    digest, tails = checksums.xxh3_128_and_tails(blocks_of(data, block), ends, 4)
    assert digest == checksums.xxh3_128([data])
    assert tails == [data[end - 4 : end] if end <= len(data) else b"" for end in ends]


@given(st.lists(st.binary(max_size=60), max_size=5), st.integers(1, 20))
def test_a_buffer_holds_its_pieces_and_a_crc_behind_each(pieces: list[bytes], block: int) -> None:
    crcs = [checksums.crc32c(piece) for piece in pieces]
    whole = b"".join(
        piece + crc.to_bytes(4, "little") for piece, crc in zip(pieces, crcs, strict=True)
    )
    buffer = checksums.DigestedBuffer(len(whole))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checksums, "_BLOCK", block)
        found = [buffer.append(np.frombuffer(piece, dtype=np.uint8)) for piece in pieces]
    data, digest = buffer.finish()
    assert (bytes(data), digest, found) == (whole, checksums.xxh3_128([whole]), crcs)


def filled(kept: bool) -> NDArray[np.uint8]:
    buffer = checksums.DigestedBuffer(64, kept=kept)
    buffer.append(np.zeros(60, dtype=np.uint8))
    return np.frombuffer(buffer.finish()[0], dtype=np.uint8)


def test_memory_that_is_kept_is_taken_by_the_next_buffer_of_its_thread_alone() -> None:
    kept = filled(kept=True)
    assert np.shares_memory(kept, filled(kept=True))
    assert not np.shares_memory(kept, filled(kept=False))
    with ThreadPoolExecutor(1) as pool:
        assert not np.shares_memory(kept, pool.submit(filled, True).result())


@pytest.mark.parametrize("data", [b"", b"123456789"])
def test_crc32c_is_castagnolis(data: bytes) -> None:
    assert checksums.crc32c(data) == (0xE3069283 if data else 0)
