"""The digests that are taken block by block equal those of the whole."""

from __future__ import annotations

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


@given(st.binary(max_size=60), st.integers(1, 20), st.sets(st.integers(0, 60), max_size=8))
def test_the_crcs_are_those_of_the_ranges(data: bytes, block: int, cuts: set[int]) -> None:
    borders = sorted(cut for cut in cuts if cut <= len(data))
    ranges = list(zip(borders[::2], borders[1::2], strict=False))
    digest, crcs = checksums.xxh3_128_and_crc32cs(blocks_of(data, block), ranges)
    assert digest == checksums.xxh3_128([data])
    assert crcs == [checksums.crc32c(data[first:last]) for first, last in ranges]


@pytest.mark.parametrize("data", [b"", b"123456789"])
def test_crc32c_is_castagnolis(data: bytes) -> None:
    assert checksums.crc32c(data) == (0xE3069283 if data else 0)
