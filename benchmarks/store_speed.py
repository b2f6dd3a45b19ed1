"""Speed of a local store, each figure a ratio to the same work without one, side by side.

reading  records at random, checked chunk by chunk / the same bytes by numpy, with their CRC32C;
         for a preset with compressed fields the encoded bytes, and what decompressing them takes
opening  a store of COCO's size and asking it what is missing and where a record lies, in seconds
verify   `verify --level full` / the same bytes hashed with XXH3, by as many processes

Everything lies in the page cache. The two sides take turns many times, and the median of the ratios
counts.

    python -m benchmarks.store_speed --output output/store_speed
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from storage import Array, CacheReader, CacheWriter, Manifest, build_index, verify
from storage.checksums import CRC_BYTES, crc32c
from storage.example import add_example
from storage.layout import commit_key
from storage.shards import decode_chunk
from storage.workers import mapped

from .records import LEVELS, NUM_CLASSES, SIGNALS, codec_of, geometry_of
from .rows import Row, conclude

if TYPE_CHECKING:
    from storage import RecordCodec

# (preset, its options, records of the store): 0.4 to 1 GB each.
STORES: tuple[tuple[str, dict[str, Any], int], ...] = (
    ("balanced", {}, 128),
    ("compact", {}, 96),
    ("exact", {"dtype": "float16"}, 16),
)
SHARD_RECORDS = 8
DIFFERENT_RECORDS = 2
ROUNDS = 15
READING_LIMIT = 2.0
DECODING_MB_PER_SEC = 500.0
OPENING_LIMIT_SEC = 3.0
VERIFY_LIMIT = 1.5

_HASHED_BLOCK = 1 << 20
_GEOMETRY = geometry_of(800, 1344)

# One chunk as numpy reads it: file, offset, number of bytes before the CRC32C, and the CRC32C.
Chunk = tuple[str, int, int, int]
# The codes of a full shard: array name to (SHARD_RECORDS, B) uint8.
Arrays = dict[str, NDArray[Any]]


def reading(folder: Path) -> list[Row]:
    """Read every record of a store for each preset, in random order, in this process."""
    rows = []
    for preset, options, count in STORES:
        store = folder / preset
        make_store(store, preset, options, count)
        order = np.random.default_rng(1).permutation(count).tolist()
        chunks = chunks_of(store, order)
        compressed = any(one.compression for one in arrays_of(store))
        # A new one each time: that commits are read is a part of what is measured.
        readers = iter([CacheReader(store) for _ in range(ROUNDS)])
        read = partial(read_all, readers, order, encoded=compressed)
        what = "the encoded bytes of " if compressed else ""
        name = f"reading {what}{preset} 800x1344 records / numpy and CRC32C"
        ratio = ratio_of(read, partial(numpy_all, chunks))
        rows.append(Row(name=name, value=ratio, limit=READING_LIMIT))
        if compressed:
            name = f"decompressing {preset} 800x1344 records, MB/s of codes"
            rate = decoding_rate(store, order[:SHARD_RECORDS]) / 1e6
            rows.append(Row(name=name, value=rate, limit=DECODING_MB_PER_SEC, at_least=True))
    return rows


def opening(folder: Path) -> list[Row]:
    """Open a store of 118,287 images in four views, as a training job does."""
    # Here, and not above: it imports detectron2.
    from .large_store import make_large_store

    store = folder / "large"
    if not store.exists():
        make_large_store(store)
    seconds = statistics.median(seconds_of(partial(open_store, store)) for _ in range(3))
    name = f"opening a store of {len(CacheReader(store)):,} records, s"
    return [Row(name=name, value=seconds, limit=OPENING_LIMIT_SEC)]


def verifying(folder: Path) -> list[Row]:
    """Verify every byte of a store with one process, and with as many as there are cores."""
    preset, options, count = STORES[0]
    store = folder / preset
    make_store(store, preset, options, count)
    files = [str(path) for path in store.rglob("*") if path.is_file()]
    rows = []
    for workers in sorted({1, os.cpu_count() or 1}):
        ratio = ratio_of(partial(check, store, workers), partial(hash_all, files, workers))
        name = f"verify --level full / reading and XXH3, {workers} processes"
        rows.append(Row(name=name, value=ratio, limit=VERIFY_LIMIT))
    return rows


def make_store(folder: Path, preset: str, options: dict[str, Any], count: int) -> None:
    """Write a store of `count` records of random bytes, unless it is there."""
    if folder.exists():
        return
    unfinished = folder.with_suffix(".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    writer = make_writer(unfinished, preset, options, count)
    arrays = make_arrays(codec_of(preset, **options))
    for shard in writer.missing():
        records = len(writer.records_of(shard))
        writer.write(shard, {name: array[:records] for name, array in arrays.items()})
    unfinished.rename(folder)


def make_writer(folder: Path, preset: str, options: dict[str, Any], count: int) -> CacheWriter:
    """Begin a store of `count` records."""
    index = build_index(
        image_id=np.arange(count), view=np.zeros(count), seed=np.arange(count, dtype=np.uint64),
        height=np.full(count, 800), width=np.full(count, 1333),
        bucket=np.full(count, _GEOMETRY.name), shard_records=SHARD_RECORDS,
    )  # fmt: skip
    manifest = Manifest.create(
        preset=preset, codec=codec_of(preset, **options), levels=LEVELS, num_classes=NUM_CLASSES,
        geometries=[_GEOMETRY], shard_records=SHARD_RECORDS,
        teacher={}, dataset={}, augmentation={}, numerics={},
    )  # fmt: skip
    return CacheWriter(folder, manifest, index)


def make_arrays(codec: RecordCodec) -> Arrays:
    """Encode outputs as smooth as a trained teacher's, for a full shard of repeated records."""
    # Here, and not above: the processes of `verify` import this module too.
    import torch
    from torch.nn.functional import interpolate

    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(DIFFERENT_RECORDS, *shape, generator=generator)

    maps, scores, deltas = SIGNALS
    channels = maps.sizes["channels"]
    levels = [
        interpolate(normal(channels, -(-h // 2), -(-w // 2)), (h, w), mode="bilinear")
        + normal(channels, h, w) / 4
        for h, w in _GEOMETRY.level_sizes
    ]
    values = {
        maps.name: torch.cat([level.flatten(2) for level in levels], dim=2),
        scores.name: normal(*scores.shape(_GEOMETRY)) * 1.5 - 7,
        deltas.name: normal(*deltas.shape(_GEOMETRY)) / 4,
    }
    arrays = codec.arrays(_GEOMETRY)
    codes = {name: code.numpy() for name, code in codec.encode(values, _GEOMETRY).items()}
    for field in (one for array in arrays for one in array.fields if one.name not in codes):
        codes[field.name] = np.zeros((DIFFERENT_RECORDS, *field.shape), dtype=field.dtype)
    times = -(-SHARD_RECORDS // DIFFERENT_RECORDS)
    joined = {array.name: array.join(codes) for array in arrays}
    return {name: np.concatenate([one] * times)[:SHARD_RECORDS] for name, one in joined.items()}


def arrays_of(store: Path) -> tuple[Array, ...]:
    """Return the arrays of a store's records."""
    return CacheReader(store).manifest.arrays[_GEOMETRY.name]


def decoding_rate(store: Path, records: Sequence[int]) -> float:
    """Bytes of codes in a second of decompressing what is in memory already."""
    arrays = {array.name: array for array in arrays_of(store) if array.compression}
    encoded = CacheReader(store).read_encoded(records)

    def decode() -> None:
        for record in encoded:
            for name, array in arrays.items():
                decode_chunk(record[name], array)

    seconds = statistics.median(seconds_of(decode) for _ in range(ROUNDS))
    return len(records) * sum(array.num_bytes for array in arrays.values()) / seconds


def chunks_of(store: Path, records: Sequence[int]) -> list[Chunk]:
    """Find where the chunks of some records lie, as their commits say."""
    reader = CacheReader(store)
    chunks = []
    for record in records:
        shard, position = reader.place_of(record)
        objects = json.loads((store / commit_key(shard)).read_bytes())["commit"]["objects"]
        for key, stored in objects.items():
            start, length, crc = stored["chunks"][position]
            chunks.append((str(store / key), start, length - CRC_BYTES, crc))
    return chunks


def open_store(store: Path) -> None:
    """Open a complete store as a training job does, until its first record could be read."""
    reader = CacheReader(store)
    assert not reader.missing()
    reader.place_of(reader.record_number(int(reader.index.image_id[-1]), view=0))


def read_all(
    readers: Iterator[CacheReader], records: Sequence[int], *, encoded: bool = False
) -> None:
    """Read records one by one with the next reader, as a training job's worker does."""
    reader = next(readers)
    for record in records:
        if encoded:
            reader.read_encoded([record])
        else:
            reader.read(record)


def numpy_all(chunks: Sequence[Chunk]) -> None:
    """Read the same bytes with numpy."""
    for path, start, count, crc in chunks:
        read_with_numpy(path, start, count, crc)


def read_with_numpy(path: str, start: int, count: int, crc: int) -> None:
    """Read one chunk without its last four bytes, and compare its CRC32C."""
    data = np.fromfile(path, dtype=np.uint8, count=count, offset=start)
    if crc32c(data.data) != crc:
        raise ValueError(f"{path}: the chunk at {start} is damaged")


def check(store: Path, workers: int) -> None:
    """Verify a store that is intact."""
    report = verify(store, "full", workers=workers)
    assert report.ok, report.problems


def hash_files(paths: Sequence[str]) -> None:
    """Read files block by block and hash each with XXH3-128."""
    block = bytearray(_HASHED_BLOCK)
    view = memoryview(block)
    for path in paths:
        digest = xxhash.xxh3_128()
        with open(path, "rb", buffering=0) as file:
            while count := file.readinto(block):
                digest.update(view[:count])
        digest.digest()


def hash_all(paths: Sequence[str], workers: int) -> None:
    """Hash files with some processes, started as `verify` starts its own."""
    shares = [paths[number::workers] for number in range(workers)]
    with mapped(_hash_share, None, shares, workers=workers) as done:
        list(done)


def _hash_share(_: None, paths: Sequence[str]) -> None:
    hash_files(paths)


def ratio_of(ours: Callable[[], object], plain: Callable[[], object]) -> float:
    """Return how many times longer `ours` takes: the median over rounds of both in turns."""
    ratios = []
    for _ in range(ROUNDS):
        own = seconds_of(ours)
        ratios.append(own / seconds_of(plain))
    return statistics.median(ratios)


def seconds_of(work: Callable[[], object]) -> float:
    """Time one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 0 only if every row is within its limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.store_speed", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("output/store_speed"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    add_example(parser, "--json output/store_speed.json")
    args = parser.parse_args(argv)
    rows = [*reading(args.output), *opening(args.output), *verifying(args.output)]
    return conclude(rows, args.json)


if __name__ == "__main__":
    sys.exit(main())
