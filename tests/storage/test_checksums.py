"""The digests that are taken block by block equal those of the whole."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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
def test_blocks_are_pieces_with_a_crc_behind_each(pieces: list[bytes], block: int) -> None:
    crcs = [checksums.crc32c(piece) for piece in pieces]
    whole = b"".join(
        piece + crc.to_bytes(4, "little") for piece, crc in zip(pieces, crcs, strict=True)
    )
    blocks = checksums.DigestedBlocks([np.frombuffer(piece, dtype=np.uint8) for piece in pieces])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checksums, "_BLOCK", block)
        for _ in range(2):  # the second time from the beginning
            given = [bytes(one) for one in blocks]
            assert b"".join(given) == whole and blocks.size == len(whole)
            assert max(map(len, given), default=0) <= max(block, 4)
            assert (blocks.xxh3_128(), blocks.crcs) == (checksums.xxh3_128([whole]), crcs)
        assert blocks.whole() == whole


def test_blocks_that_are_left_have_no_digest() -> None:
    blocks = checksums.DigestedBlocks([np.zeros(3, dtype=np.uint8)])
    next(iter(blocks))
    with pytest.raises(AssertionError, match="blocks are left"):
        blocks.xxh3_128()


@pytest.mark.parametrize("data", [b"", b"123456789"])
def test_crc32c_is_castagnolis(data: bytes) -> None:
    assert checksums.crc32c(data) == (0xE3069283 if data else 0)
