"""Faults at random places: each is found, blamed on the right shard, and mended."""

from __future__ import annotations

import os
import random
import zlib
from contextlib import suppress
from pathlib import Path

import pytest

from storage import CacheReader, CacheWriter, repair, verify
from storage.errors import CacheError
from tests.storage import faults
from tests.storage.cases import contents, fill, make_index, make_manifest

FULL = os.environ.get("GID_FAULTS") == "full"  # as `make faults` has it
PER_KIND = 20 if FULL else 1
MENDED = 4 if FULL else 5  # one of so many is mended, too
VITAL = ("root", "manifest.sha256", "index column")
SORTS = (
    *VITAL, "index: zarr.json of depth 1", "index: zarr.json of depth 2",
    "buckets: zarr.json of depth 1", "buckets: zarr.json of depth 2",
    "buckets: zarr.json of depth 3", "commits", "array echo", "array votes", "array record",
)  # fmt: skip


@pytest.mark.parametrize("sort", SORTS)
def test_every_fault_is_found_blamed_on_the_right_shard_and_mended(cache: Path, sort: str) -> None:
    whole = contents(cache)
    keys = faults.keys_by_kind(whole)
    assert set(keys) == set(SORTS)
    rng = random.Random(zlib.crc32(sort.encode()))
    drawn = [
        faults.draw(kind, keys[sort], whole, rng) for kind in faults.KINDS for _ in range(PER_KIND)
    ]
    for number, fault in enumerate(drawn):
        fault.apply(cache)
        check_found(cache, fault)
        if number % MENDED == 0:
            mend(cache)
            mend(cache)  # once more: without its metadata, no shard could be judged
            assert contents(cache) == whole, fault
        else:
            fault.undo(cache, whole)
    assert verify(cache, "deep").ok


def check_found(cache: Path, fault: faults.Fault) -> None:
    """Check that a fault is reported, of the right shards and with the way out."""
    try:
        report = verify(cache)
    except FileNotFoundError as error:  # the root itself is gone
        assert "zarr.json is absent" in str(error) and "the dump" in str(error), fault
        return
    assert not report.ok, fault
    named = {problem.shard for problem in report.problems} - {""}
    found = {problem.where for problem in report.problems}
    if "metadata" in found:  # without root and index nothing else can be judged
        vital = {key for key in fault.after if faults.kind_of(key) in VITAL}
        assert vital and not named, fault
    else:
        assert named == fault.shards, fault
        assert {key for key in fault.after if not faults.shard_of(key)} <= found, fault
    for line in map(str, report.problems):
        assert "\n" not in line and str(cache) in line, line
        assert "storage repair" in line or "run the dump again" in line, line


def mend(cache: Path) -> None:
    """Do what the messages say: repair, then the dump again."""
    with suppress(FileNotFoundError):  # no root: the dump writes it
        repair(cache)
    index = make_index(num_views=2)
    fill(CacheWriter(cache, make_manifest(index), index))


def test_many_faults_at_once_are_mended(cache: Path) -> None:
    whole = contents(cache)
    rng = random.Random(5)
    for _ in range(40 if FULL else 3):
        for sort in rng.sample(SORTS, 6):
            keys = faults.keys_by_kind(whole)[sort]
            kind = rng.choice(faults.KINDS[:4])
            faults.draw(kind, keys, whole, rng).apply(cache)
        mend(cache)
        mend(cache)
        assert contents(cache) == whole
        assert verify(cache).ok


def test_a_reader_never_returns_a_damaged_value(cache: Path) -> None:
    whole = contents(cache)
    original = CacheReader(cache)
    records = range(len(original))
    expected = [original.read_encoded([record])[0] for record in records]
    keys = [key for sort, some in faults.keys_by_kind(whole).items() for key in some
            if sort == "commits" or sort.startswith("array")]  # fmt: skip
    rng = random.Random(11)
    for number in range(200 if FULL else 20):
        fault = faults.draw(faults.KINDS[number % 5], keys, whole, rng)
        fault.apply(cache)
        reader = CacheReader(cache)
        for record in records:
            try:
                assert reader.read_encoded([record])[0] == expected[record], fault
            except CacheError as error:
                line = str(error)
                shard = str(reader.place_of(record)[0])
                assert shard in fault.shards and shard in line and str(cache) in line, fault
                assert "storage repair" in line or "run the dump again" in line, line
        fault.undo(cache, whole)
