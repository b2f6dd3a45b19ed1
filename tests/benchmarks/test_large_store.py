"""The store that stands for a large one: its metadata and commits are real, its bytes are not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks.large_store import coco_like_images, make_large_store
from storage import CacheReader, verify


def test_it_is_whole_as_far_as_sizes_tell_and_occupies_no_disk(tmp_path: Path) -> None:
    writer = make_large_store(tmp_path / "cache", images=60, views=2, shard_records=8)
    report = verify(tmp_path / "cache", "quick")
    assert report.ok and report.records == 120
    assert len(CacheReader(tmp_path / "cache")) == 120 and writer.missing() == []
    files = [path.stat() for path in (tmp_path / "cache").rglob("c/**/*") if path.is_file()]
    assert sum(one.st_size for one in files) > 500_000_000
    assert sum(one.st_blocks * 512 for one in files) < 10_000_000


def test_its_bytes_are_zeros_and_checked_as_such(tmp_path: Path) -> None:
    make_large_store(tmp_path / "cache", images=1, views=1)
    kinds = {problem.kind for problem in verify(tmp_path / "cache", "full").problems}
    assert kinds == {"damaged"}


def test_its_images_have_the_sizes_of_coco() -> None:
    images = coco_like_images(5000)
    assert np.maximum(images.heights, images.widths).tolist() == [640] * 5000
    landscape = float((images.widths > images.heights).mean())
    assert 0.7 < landscape < 0.8
