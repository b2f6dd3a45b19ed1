"""The reader: what was written comes back, and nothing else ever does."""

from __future__ import annotations

import hashlib
import json
import math
import pickle
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs  # type: ignore[import-untyped]
import numpy as np
import pytest
import xxhash
import zarr

from storage import (
    Array,
    CacheReader,
    CorruptChunkError,
    Field,
    FormatError,
    IdentityError,
    MissingShardError,
    ShardId,
)
from storage.layout import commit_key, object_key
from storage.location import Location, Range
from storage.shards import chunk_table, decode_chunk
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
    for number in (-1, 16):
        with pytest.raises(IndexError, match=f"record {number} of 16"):
            CacheReader(finished).read(number)


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


class TestPortableReading:
    """Any zarr v3 reader opens the arrays; here zarr's own, which knows nothing of commits."""

    def test_zarr_reads_the_same_codes(self, finished: Path) -> None:
        reader = CacheReader(finished)
        root: Any = zarr.open_group(finished, mode="r", zarr_format=3)
        for number in range(len(reader)):
            bucket, slot = reader.geometry_of(number).name, int(reader.index.slot[number])
            expected = reader.read(number)
            for name, array in root[f"buckets/{bucket}"].arrays():
                raw = array[slot].tobytes()
                for field in array.attrs["fields"]:
                    own = expected.pop(field["name"])
                    np.testing.assert_array_equal(value_of(field, raw), own, name)
            assert not expected

    def test_zarr_reads_the_index(self, finished: Path) -> None:
        reader = CacheReader(finished)
        root: Any = zarr.open_group(finished, mode="r", zarr_format=3)
        for column in ("image_id", "view", "seed", "height", "width", "bucket", "slot"):
            np.testing.assert_array_equal(root[f"index/{column}"][:], getattr(reader.index, column))

    def test_attributes_say_what_the_codes_mean(self, finished: Path) -> None:
        root: Any = zarr.open_group(finished, mode="r", zarr_format=3)
        assert root.attrs["gid"]["format"] == {"name": "gid-teacher-cache", "version": 2}
        bucket = root[f"buckets/{WIDE.name}"]
        assert bucket.attrs["geometry"]["level_sizes"] == [[4, 6], [2, 3]]
        assert bucket.attrs["level_offsets"] == [0, 24, 30]
        echo, votes = bucket["echo"], bucket["votes"]
        assert echo.dtype == np.uint8 and echo.chunks == (1, 150) and echo.shards == (3, 150)
        assert echo.shape == (reader_slots(finished), 150)
        # float16 begins at an even byte.
        assert [one["offset"] for one in votes.attrs["fields"]] == [0, 4]
        detections = bucket["record"].attrs["fields"][0]
        assert detections["attributes"]["columns"] == ["x1", "y1", "x2", "y2", "score", "class"]


class TestDocument:
    """A reader made from docs/FORMAT.md alone; nothing of the package but the answers."""

    def test_metadata(self, finished: Path) -> None:
        raw = (finished / "zarr.json").read_bytes()
        assert (finished / "manifest.sha256").read_text() == sha256(raw) + "\n"
        manifest = json.loads(raw)["attributes"]["gid"]
        assert manifest["cache_id"] == sha256(canonical(manifest["identity"]))
        for key, digest in manifest["digests"].items():
            assert sha256((finished / key).read_bytes()) == digest
        names = [geometry_name(bucket["geometry"]) for bucket in manifest["buckets"]]
        digest = hashlib.sha256("\n".join(names).encode())
        for column, dtype in INDEX_TYPES.items():
            digest.update(read_column(finished, column, dtype, manifest["index"]["records"]))
        assert digest.hexdigest() == manifest["index"]["sha256"]

    def test_a_record(self, finished: Path) -> None:
        manifest = json.loads((finished / "zarr.json").read_bytes())["attributes"]["gid"]
        count, number = manifest["index"]["records"], 12
        entry = {
            column: np.frombuffer(read_column(finished, column, dtype, count), dtype)[number]
            for column, dtype in INDEX_TYPES.items()
        }
        bucket = manifest["buckets"][entry["bucket"]]
        name = geometry_name(bucket["geometry"])
        shard, position = divmod(int(entry["slot"]), manifest["identity"]["shard_records"])
        raw = (finished / f"commits/{name}/{shard:05d}.json").read_bytes()
        body = raw.removeprefix(b'{"commit":')[: -len(',"sha256":""}\n') - 64]
        assert raw.endswith(b',"sha256":"%b"}\n' % sha256(body).encode())
        commit = json.loads(body)
        assert body == canonical(commit) and commit["cache_id"] == manifest["cache_id"]
        assert commit["records"]["seed"][position] == f"{entry['seed']:016x}"
        expected = CacheReader(finished).read(number)
        for array in bucket["arrays"]:
            key = f"buckets/{name}/{array['name']}/c/{shard}/0"
            stored = commit["objects"][key]
            data = (finished / key).read_bytes()
            assert len(data) == stored["size"]
            assert xxhash.xxh3_128_hexdigest(data) == stored["xxh3_128"]
            start, length, crc = stored["chunks"][position]
            chunk, trailer = data[start : start + length - 4], data[start + length - 4 :][:4]
            assert google_crc32c.value(chunk) == crc == int.from_bytes(trailer, "little")
            if array["compression"] == "zstd":
                chunk = bytes(numcodecs.Zstd().decode(chunk))
            for field in array["fields"]:
                np.testing.assert_array_equal(value_of(field, chunk), expected.pop(field["name"]))
        assert not expected


INDEX_TYPES = {
    "image_id": "<i8", "view": "<i4", "seed": "<u8", "height": "<i4", "width": "<i4",
    "bucket": "<i4", "slot": "<i8",
}  # fmt: skip


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def value_of(field: dict[str, Any], raw: bytes) -> np.ndarray:
    """One field of a record, given what attributes say of it and the bytes of its array."""
    dtype, shape = np.dtype(field["dtype"]).newbyteorder("<"), field["shape"]
    return np.frombuffer(raw, dtype, math.prod(shape), field["offset"]).reshape(shape)


def geometry_name(geometry: dict[str, Any]) -> str:
    return f"{geometry['height']:04d}x{geometry['width']:04d}"


def read_column(store: Path, column: str, dtype: str, count: int) -> bytes:
    size = np.dtype(dtype).itemsize
    chunk = (store / f"index/{column}/c/0").read_bytes()
    assert len(chunk) == 32_768 * size + 4
    return chunk[: count * size]


def reader_slots(path: Path) -> int:
    return CacheReader(path).manifest.slots[WIDE.name]


def test_growing_keeps_an_open_reader_working(tmp_path: Path) -> None:
    make_cache(tmp_path / "cache", num_views=1)
    reader = CacheReader(tmp_path / "cache")
    make_cache(tmp_path / "cache", num_views=2)
    assert_record(reader, 7)
    assert len(reader) == len(make_index(num_views=1))


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
