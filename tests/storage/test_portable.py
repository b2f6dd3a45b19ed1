"""Reading without our reader: zarr alone, and what docs/FORMAT.md says."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs  # type: ignore[import-untyped]
import numpy as np
import xxhash
import zarr

from storage import CacheReader
from tests.storage.cases import WIDE


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
