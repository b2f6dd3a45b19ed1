"""The reader: what was written comes back, and nothing else ever does."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from zarr.storage import MemoryStore

from storage import (
    CacheReader,
    CorruptChunkError,
    FormatError,
    IdentityError,
    MissingShardError,
    ShardId,
)
from storage.layout import commit_key, object_key
from storage.location import Location, Range
from storage.shards import chunk_table
from tests.storage.cases import (
    SHARD_RECORDS,
    TALL,
    WIDE,
    NewLocation,
    fill,
    flip,
    make_cache,
    make_index,
    make_record,
)


def assert_record(reader: CacheReader, number: int) -> None:
    index = reader.index
    record = reader.read(number)
    arrays = reader.manifest.arrays[reader.geometry_of(number).name]
    fields = [field for array in arrays for field in array.fields]
    assert record.keys() == {field.name for field in fields}
    for field in fields:
        expected = make_record(
            field, int(index.seed[number]), int(index.height[number]), int(index.width[number])
        )
        assert record[field.name].dtype == expected.dtype
        np.testing.assert_array_equal(record[field.name], expected)


def note_keys(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that grows by every object of which something is read."""
    asked: list[str] = []
    get_ranges = Location.get_ranges

    def spy(self: Location, ranges: list[Range]) -> list[memoryview | None]:
        asked.extend(key for key, _, _ in ranges)
        return get_ranges(self, ranges)

    monkeypatch.setattr(Location, "get_ranges", spy)
    return asked


def test_every_record_comes_back_as_it_was_written(new_location: NewLocation) -> None:
    place = new_location()
    make_cache(place, num_views=2)
    reader = CacheReader(place)
    assert len(reader) == 16 and reader.missing() == []
    for number in range(16):
        assert_record(reader, number)
    together = reader.read_many([5, 0, 5, 15])
    assert [int(one["pixels_crc32c"]) for one in together] == [
        int(reader.read(number)["pixels_crc32c"]) for number in (5, 0, 5, 15)
    ]
    assert reader.read_many([]) == []


def test_records_are_found_by_image_and_view(finished: Path) -> None:
    reader = CacheReader(finished)
    for number in range(len(reader)):
        image, view = int(reader.index.image_id[number]), int(reader.index.view[number])
        assert reader.record_number(image, view) == number
    for image, view in ((1001, 0), (1000, 2), (1000, -1), (99999, 1)):
        with pytest.raises(KeyError, match=f"no record of image {image}, view {view}"):
            reader.record_number(image, view)


def test_records_outside_the_store_are_refused(finished: Path) -> None:
    reader = CacheReader(finished)
    for number in (-1, 16):
        for ask in (reader.read, reader.geometry_of):
            with pytest.raises(IndexError, match=f"{finished}: record {number} of 16"):
                ask(number)


COMMON = {"detections", "pixels_crc32c", "pixels_sample"}


@pytest.mark.parametrize(
    ("signals", "fields"),
    [
        (["echo"], {"echo.codes", "echo.bound"}),
        (["votes"], {"votes.high", "votes.values"}),
        ([], set()),
    ],
)
def test_signals_limit_what_is_read_and_what_is_small_comes_in_one_request(
    finished: Path, monkeypatch: pytest.MonkeyPatch, signals: list[str], fields: set[str]
) -> None:
    reader = CacheReader(finished, signals=signals)
    asked = note_keys(monkeypatch)
    assert reader.read(0).keys() == fields | COMMON
    objects = [key.split("/")[2] for key in asked if key.startswith("buckets/")]
    assert objects == [*signals, "record"]


def test_an_unknown_signal_is_refused_with_the_choices(finished: Path) -> None:
    with pytest.raises(ValueError, match="no signal 'colour', only echo, votes"):
        CacheReader(finished, signals=["colour"])
    said = r"cache: signals: expected names, such as \('votes',\), got the text 'votes'"
    with pytest.raises(ValueError, match=said):
        CacheReader(finished, signals="votes")


def test_opening_reads_only_manifest_and_index(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = note_keys(monkeypatch)
    CacheReader(finished)
    assert {key.partition("/")[0] for key in asked} == {"zarr.json", "manifest.sha256", "index"}


def test_commits_are_read_once(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = CacheReader(finished)
    asked = note_keys(monkeypatch)
    reader.read_many([0, 1, 3])
    reader.read(0)
    assert [key for key in asked if not key.startswith("buckets/")] == [
        "commits/0032x0048/00000.json"
    ]


def test_a_pickled_reader_carries_no_data(finished: Path) -> None:
    reader = CacheReader(finished, signals=["votes"])
    reader.read(0)
    raw = pickle.dumps(reader)
    assert len(raw) < 1000
    again = pickle.loads(raw)
    assert again.read(3).keys() == reader.read(3).keys() == {"votes.high", "votes.values"} | COMMON


def test_a_worker_notices_that_the_store_was_replaced(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache")
    raw = pickle.dumps(CacheReader(tmp_path / "cache"))
    (tmp_path / "cache").rename(tmp_path / "old")
    make_cache(tmp_path / "cache", teacher={"tensors": "ef" * 32})
    with pytest.raises(IdentityError, match="replaced by another cache"):
        pickle.loads(raw).read(0)


def test_a_cache_that_went_away_or_was_replaced_is_not_told_to_be_repaired(tmp_path: Path) -> None:
    place = tmp_path / "cache"
    make_cache(place)
    read_on, begun = CacheReader(place), CacheReader(place)
    read_on.read(0)
    place.rename(tmp_path / "old")
    for reader in (read_on, begun):
        with pytest.raises(MissingShardError, match="the cache is no longer there: bring it back"):
            reader.read(0)
    make_cache(place, teacher={"tensors": "ef" * 32})
    shutil.rmtree(place / "buckets")
    with pytest.raises(MissingShardError, match="another cache lies there now: bring back"):
        read_on.read(0)
    shutil.rmtree(place)
    (tmp_path / "old").rename(place)
    assert_record(read_on, 0)


def test_a_reader_sees_shards_that_are_committed_after_it_was_opened(tmp_path: Path) -> None:
    writer = make_cache(tmp_path / "cache", num_views=1)
    shard = ShardId(TALL.name, 0)
    (tmp_path / "cache" / commit_key(shard)).unlink()
    reader = CacheReader(tmp_path / "cache")
    with pytest.raises(MissingShardError):
        reader.read(2)
    fill(writer)
    assert_record(reader, 2)


class TestDamage:
    def test_an_uncommitted_shard_is_an_error(self, cache: Path) -> None:
        (cache / commit_key(ShardId(TALL.name, 0))).unlink()
        reader = CacheReader(cache)
        assert reader.missing() == [ShardId(TALL.name, 0)]
        with pytest.raises(MissingShardError, match=r"shard 0048x0032/00000 is not committed"):
            reader.read(2)
        assert_record(reader, 0)

    def test_an_absent_object_is_an_error_and_not_zeros(self, cache: Path) -> None:
        reader = CacheReader(cache)
        array = reader.manifest.arrays[WIDE.name][0]
        (cache / object_key(ShardId(WIDE.name, 0), array)).unlink()
        with pytest.raises(
            MissingShardError, match=r"shard 0032x0048/00000, array echo: is absent .*repair"
        ):
            reader.read(0)

    @pytest.mark.parametrize("where", ["value", "stored CRC"])
    @pytest.mark.parametrize("number", range(3))
    def test_a_flipped_bit_is_an_error_that_names_the_place_and_the_remedy(
        self, cache: Path, number: int, where: str
    ) -> None:
        reader = CacheReader(cache)
        array = reader.manifest.arrays[WIDE.name][number]
        path = cache / object_key(ShardId(WIDE.name, 0), array)
        start, length = chunk_table(path.read_bytes(), SHARD_RECORDS)[0].tolist()
        flip(path, start if where == "value" else start + length - 1, 0x10)
        with pytest.raises(CorruptChunkError) as caught:
            reader.read(0)
        error = pickle.loads(pickle.dumps(caught.value))
        assert (error.store, error.shard, error.array) == (
            str(cache), "0032x0048/00000", array.name,
        )  # fmt: skip
        assert f"python -m storage repair {cache}" in str(error)
        # PyTorch rebuilds a worker's error from its message alone.
        assert str(type(error)(str(error))) == str(error)

    def test_a_truncated_object_is_an_error(self, cache: Path) -> None:
        reader = CacheReader(cache)
        array = reader.manifest.arrays[WIDE.name][0]
        path = cache / object_key(ShardId(WIDE.name, 0), array)
        path.write_bytes(path.read_bytes()[:100])
        with pytest.raises(CorruptChunkError, match="cut short"):
            reader.read(0)

    def test_swapped_shards_are_an_error(self, cache: Path) -> None:
        reader = CacheReader(cache)
        array = reader.manifest.arrays[WIDE.name][0]
        paths = [cache / object_key(ShardId(WIDE.name, number), array) for number in (0, 1)]
        data = [path.read_bytes() for path in paths]
        for path, other in zip(paths, reversed(data), strict=True):
            path.write_bytes(other)
        with pytest.raises(CorruptChunkError):
            reader.read(0)

    def test_swapped_commits_are_an_error(self, cache: Path) -> None:
        paths = [cache / commit_key(ShardId(WIDE.name, number)) for number in (0, 1)]
        paths[0].write_bytes(paths[1].read_bytes())
        with pytest.raises(FormatError, match="is the commit of shard '0032x0048' 1"):
            CacheReader(cache).read(0)

    def test_a_damaged_commit_is_an_error(self, cache: Path) -> None:
        path = cache / commit_key(ShardId(WIDE.name, 0))
        path.write_bytes(path.read_bytes().replace(b"1000", b"1001", 1))
        with pytest.raises(FormatError, match="SHA-256 does not match"):
            CacheReader(cache).read(0)

    @pytest.mark.parametrize("key", ["zarr.json", "manifest.sha256"])
    def test_a_damaged_manifest_is_refused(self, cache: Path, key: str) -> None:
        raw = (cache / key).read_bytes()
        (cache / key).write_bytes(raw.replace(b"1", b"7", 1))
        with pytest.raises(
            FormatError, match=r"zarr.json does not match manifest.sha256; .* keeps the shards"
        ):
            CacheReader(cache)

    def test_a_damaged_index_is_refused(self, cache: Path) -> None:
        path = cache / "index/seed/c/0"
        data = bytearray(path.read_bytes())
        data[3] ^= 1
        path.write_bytes(data)
        with pytest.raises(FormatError, match="index/seed/c/0: damaged"):
            CacheReader(cache)

    def test_no_store_is_no_store(self, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no teacher cache here"):
            CacheReader(tmp_path / "nothing")
        assert not (tmp_path / "nothing").exists()


def test_growing_keeps_an_open_reader_working(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", num_views=1)
    reader = CacheReader(tmp_path / "cache")
    make_cache(tmp_path / "cache", num_views=2)
    assert_record(reader, 7)
    assert len(reader) == len(make_index(num_views=1))


@pytest.mark.parametrize("is_local", [True, False])
def test_records_of_a_local_store_are_read_one_by_one_and_others_at_once(
    tmp_path: Path, is_local: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = Location(tmp_path) if is_local else Location(MemoryStore())
    make_cache(place)
    reader = CacheReader(place)
    reader.read_many(range(len(reader)))  # so the commits are read
    calls = []
    get_ranges = Location.get_ranges

    def note(self: Location, ranges: Sequence[Any]) -> Any:
        calls.append(len(ranges))
        return get_ranges(self, ranges)

    monkeypatch.setattr(Location, "get_ranges", note)
    each = reader.read_each([3, 1, 2])
    assert calls == []
    next(each)
    num_arrays = len(next(iter(reader.arrays.values())))
    assert calls == [num_arrays if is_local else 3 * num_arrays]
    assert len(list(each)) == 2 and sum(calls) == 3 * num_arrays
