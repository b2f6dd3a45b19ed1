"""A store of COCO's size, made in seconds: real metadata and commits over sparse objects.

What takes long only at scale (opening a store, `verify --level quick`) is measured on it. Its
objects have the sizes that their commits state and occupy no disk; their bytes are zeros, so that
the checks which read them fail.

Shape letters: N images, n records of a shard.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from configs.nodes import ViewsConfig
from dataset.tables import ImageTable
from stage1_dump.plan import PlanConfig, bucket_size, make_plan
from storage import Array, CacheWriter, Index, Manifest, ShardId
from storage import commit as commits
from storage.checksums import CRC_BYTES
from storage.commit import Commit, StoredObject
from storage.layout import commit_key, object_key
from storage.shards import table_bytes

from .records import LEVELS, NUM_CLASSES, codec_of, geometry_of

COCO_IMAGES = 118_287
COCO_VIEWS = 4
MULTI_SCALE = (640, 672, 704, 736, 768, 800)


def coco_like_images(count: int) -> ImageTable:
    """Draw N images whose sizes resemble those of COCO train2017: a guess, not a count.

    The longer side is 640 px; three of four images are landscape; 4:3 and 3:2 are the commonest
    shapes, and a fifth of the images have any shape between 1:1 and 16:9.
    """
    rng = np.random.default_rng(2017)
    long = np.full(count, 640)
    short = rng.choice([480, 427, 426, 425, 0], size=count, p=[0.45, 0.2, 0.1, 0.05, 0.2])
    short = np.where(short == 0, rng.integers(360, 641, count), short)
    portrait = rng.random(count) < 0.26
    return ImageTable(
        ids=np.arange(1, count + 1, dtype=np.int64),
        file_names=[f"{number:012d}.jpg" for number in range(1, count + 1)],
        heights=np.where(portrait, long, short).astype(np.int32),
        widths=np.where(portrait, short, long).astype(np.int32),
    )


def large_plan(
    images: int = COCO_IMAGES,
    views: int = COCO_VIEWS,
    *,
    preset: str = "balanced",
    shard_records: int = 32,
) -> tuple[Manifest, Index]:
    """Plan a cache of RetinaNet's outputs, 80 classes and 9 anchors, at six scales.

    Args:
        images, views: how many; their product is the number of records.
        preset: the codec, with its default parameters.
        shard_records: records of a full shard.
    """
    config = PlanConfig(
        views=ViewsConfig(num=views, scales=MULTI_SCALE),
        size_divisibility=32,
        shard_records=shard_records,
    )
    index = make_plan(coco_like_images(images), config)
    manifest = Manifest.create(
        preset=preset,
        codec=codec_of(preset),
        levels=LEVELS,
        num_classes=NUM_CLASSES,
        geometries=[geometry_of(*bucket_size(name)) for name in index.bucket_names],
        shard_records=shard_records,
        teacher={"tensors": "0" * 64},
        dataset={"images": images},
        augmentation={"scales": list(MULTI_SCALE)},
        numerics={},
    )
    return manifest, index


def make_large_store(
    folder: str | os.PathLike[str],
    images: int = COCO_IMAGES,
    views: int = COCO_VIEWS,
    *,
    preset: str = "balanced",
    shard_records: int = 32,
) -> CacheWriter:
    """Create a complete store in an empty local folder; arguments as of `large_plan`.

    Every shard has a commit as a dump would write it, with digests drawn at random, and sparse
    objects of the sizes in it. `verify --level quick` finds no problem.

    Returns:
        The writer, which knows the store's manifest and index.
    """
    manifest, index = large_plan(images, views, preset=preset, shard_records=shard_records)
    writer = CacheWriter(folder, manifest, index)
    root, rng = Path(folder), np.random.default_rng(0)
    _make_folders(root, writer.manifest)
    for shard in writer.missing():
        _write_shard(root, writer, shard, rng)
    return writer


def _make_folders(root: Path, manifest: Manifest) -> None:
    """Make the folders that the shards of a bucket share."""
    for bucket, arrays in manifest.arrays.items():
        first = ShardId(bucket, 0)
        for key in (commit_key(first), *(object_key(first, array) for array in arrays)):
            (root / key).parent.mkdir(parents=True, exist_ok=True)


def _write_shard(root: Path, writer: CacheWriter, shard: ShardId, rng: np.random.Generator) -> None:
    records = writer.records_of(shard)
    arrays = writer.manifest.arrays[shard.bucket]
    objects = {
        array.name: _describe(array, len(records), writer.manifest.shard_records, rng)
        for array in arrays
    }
    for array in arrays:
        path = root / object_key(shard, array)
        path.parent.mkdir(parents=True, exist_ok=True)  # "c/<shard>/0": a folder of its own
        with path.open("wb") as file:
            file.truncate(objects[array.name].size)
    entries = commits.record_entries(writer.index, records)
    commit = Commit(writer.manifest.cache_id, shard, entries, objects)
    (root / commit_key(shard)).write_bytes(commits.dump(commit, arrays))


def _describe(
    array: Array, count: int, shard_records: int, rng: np.random.Generator
) -> StoredObject:
    length = array.num_bytes + CRC_BYTES
    chunks: NDArray[np.int64] = np.empty((count, 3), dtype=np.int64)
    chunks[:, 0] = np.arange(count) * length
    chunks[:, 1] = length
    chunks[:, 2] = rng.integers(0, 1 << 32, count)
    size = count * length + table_bytes(shard_records)
    return StoredObject(size, rng.bytes(16).hex(), chunks)
