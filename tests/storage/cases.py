"""Tiny caches for the tests: two padded sizes, records whose arrays follow from their seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage import (
    Array,
    CacheReader,
    CacheWriter,
    Field,
    Geometry,
    Index,
    Manifest,
    ShardId,
    build_index,
    canonical,
    checksums,
)
from storage.layout import CLAIMS, LOG, object_key
from storage.location import Location
from storage.schema import RECORD, common_fields

NUM_CLASSES = 4
NUM_DETECTIONS = 3
SHARD_RECORDS = 3
WIDE = Geometry(32, 48, ((4, 6), (2, 3)))
TALL = Geometry(48, 32, ((6, 4), (3, 2)))
FIRST = ShardId(WIDE.name, 0)
# What the fixture `new_location` gives: one more empty location of its backend.
NewLocation = Callable[[], Location]
GEOMETRIES = {geometry.name: geometry for geometry in (WIDE, TALL)}


# Signals that no detector of ours has, of codecs that nobody knows: the store asks for neither.
_CODEC = {"name": "of_nobody", "version": 1, "parameters": {}}
SIGNALS = {
    "echo": {"kind": "maps", "sizes": {"channels": 5}, "codec": _CODEC},
    "votes": {
        "kind": "scores", "sizes": {"anchors": 2, "classes": NUM_CLASSES}, "codec": _CODEC,
    },
}  # fmt: skip
LEVELS = {"p3": 8, "p4": 16}


def arrays_of(geometry: Geometry) -> tuple[Array, ...]:
    """Arrays of every kind that codecs may ask for: one field, several, compressed, small."""
    positions = geometry.num_positions
    return (
        Array("echo", (Field("echo.codes", (5, positions), "int8"),)),
        Array(
            "votes",
            (
                Field("votes.high", (3,), "uint8"),
                Field("votes.values", (2 * positions, NUM_CLASSES), "float16"),
            ),
            "zstd",
        ),
        Array(RECORD, (*common_fields(NUM_DETECTIONS), Field("echo.bound", (), "float32"))),
    )


def make_index(num_images: int = 8, num_views: int = 1) -> Index:
    """Plan images over two buckets; every third image is tall."""
    image = np.tile(np.arange(num_images), num_views)
    view = np.repeat(np.arange(num_views), num_images)
    tall = (image + view) % 3 == 2
    return build_index(
        image_id=1000 + 7 * image,
        view=view,
        seed=(image.astype(np.uint64) << np.uint64(40)) + view.astype(np.uint64) + np.uint64(2**63),
        height=np.where(tall, 45, 30),
        width=np.where(tall, 30, 45),
        bucket=np.where(tall, TALL.name, WIDE.name),
        shard_records=SHARD_RECORDS,
    )


def make_manifest(index: Index, **changes: Any) -> Manifest:
    """Describe the cache of `make_index`, without codecs (so without PyTorch)."""
    geometries = {name: GEOMETRIES[name] for name in index.bucket_names}
    arguments = {
        "preset": "exact",
        "signals": SIGNALS,
        "levels": LEVELS,
        "detections": {"rows": NUM_DETECTIONS, "classes": NUM_CLASSES},
        "shard_records": SHARD_RECORDS,
        "geometries": geometries,
        "arrays": {name: arrays_of(one) for name, one in geometries.items()},
        "teacher": {"tensors": "ab" * 32, "config": {"INPUT": {"FORMAT": "BGR"}}},
        "dataset": {"sha256": "cd" * 32, "images": 8},
        "augmentation": {"seed": 1, "scales": [30]},
        "numerics": {"precision": "float32"},
    }
    return Manifest(**{**arguments, **changes})


def make_record(field: Field, seed: int, height: int, width: int) -> NDArray[Any]:
    """Return one field of a record; the first image's codes are all zero."""
    rng = np.random.default_rng([seed, *field.name.encode()])
    if field.name == "detections":
        rows = np.full((NUM_DETECTIONS, 6), -1, dtype=np.float32)
        rows[0] = [1, 2, width - 1, height - 1, 0.75, seed % NUM_CLASSES]
        return rows
    if seed == 2**63:
        return np.zeros(field.shape, dtype=field.dtype)
    if np.dtype(field.dtype).kind == "f":
        return rng.normal(size=field.shape).astype(field.dtype)
    info = np.iinfo(field.dtype)
    return rng.integers(info.min, info.max, size=field.shape, dtype=field.dtype, endpoint=True)


def make_fields(writer: CacheWriter, shard: ShardId) -> dict[str, NDArray[Any]]:
    """Return the fields of a shard's records, (n, *shape) each, as a dump would compute them."""
    records = writer.records_of(shard)
    columns = (getattr(writer.index, name)[records] for name in ("seed", "height", "width"))
    views = list(zip(*(column.tolist() for column in columns), strict=True))
    fields = [one for array in writer.manifest.arrays[shard.bucket] for one in array.fields]
    return {
        one.name: np.array([make_record(one, *view) for view in views], one.dtype).reshape(
            (len(views), *one.shape)
        )
        for one in fields
    }


def make_arrays(
    writer: CacheWriter, shard: ShardId, change: Callable[[dict[str, Any]], object] = len
) -> dict[str, NDArray[Any]]:
    """Return the arrays of a shard, whose fields `change` may change."""
    fields = make_fields(writer, shard)
    change(fields)
    return {one.name: one.join(fields) for one in writer.manifest.arrays[shard.bucket]}


def open_writer(location: Any, num_views: int = 1, **changes: Any) -> CacheWriter:
    """Open a writer of a small plan; `changes` are the manifest's."""
    index = make_index(num_views=num_views)
    return CacheWriter(location, make_manifest(index, **changes), index)


def fill(writer: CacheWriter, shards: Iterable[ShardId] | None = None) -> None:
    """Write shards, all missing ones by default."""
    for shard in writer.missing() if shards is None else shards:
        writer.write(shard, make_arrays(writer, shard))


def make_cache(
    location: Path | Location, num_images: int = 8, num_views: int = 1, **changes: Any
) -> CacheWriter:
    """Write a whole cache."""
    index = make_index(num_images, num_views)
    writer = CacheWriter(location, make_manifest(index, **changes), index)
    fill(writer)
    return writer


def contents(location: Path | Location) -> dict[str, bytes]:
    """Return everything that counts when two stores are compared."""
    place = Location(location)
    keys = [key for key in place.sizes() if key.partition("/")[0] not in (CLAIMS, LOG)]
    return {key: place.get(key) or b"" for key in keys}


def rewrite_root(cache: Path, root: Any) -> None:
    """Put a forged root in place, with the digest that belongs to it."""
    raw = (json.dumps(root, sort_keys=True, indent=1) + "\n").encode()
    (cache / "zarr.json").write_bytes(raw)
    (cache / "manifest.sha256").write_text(f"{checksums.sha256(raw)}\n")


def reframe(body: Any) -> bytes:
    """Give a forged commit the digest that belongs to it."""
    text = canonical.dump(body)
    return b'{"commit":%b,"sha256":"%b"}\n' % (text, checksums.sha256(text).encode())


def first_path(cache: Path, shard: ShardId = FIRST) -> Path:
    """Return the file of a shard's first array."""
    return cache / object_key(shard, CacheReader(cache).manifest.arrays[shard.bucket][0])


def flip(path: Path, position: int, mask: int = 1) -> None:
    """Change a byte of a file."""
    data = bytearray(path.read_bytes())
    data[position] ^= mask
    path.write_bytes(data)


def clock(at_sleep: Callable[[float], object]) -> SimpleNamespace:
    """In place of `time`: goes on in sleeps alone, each of which does something; given its end."""
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        at_sleep(now[0])

    return SimpleNamespace(monotonic=lambda: now[0], sleep=sleep)
