"""The annotations that planning is timed on look like COCO's."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from benchmarks import plan_speed
from dataset.reading import load_annotations


def test_annotations_are_coco_s_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_speed, "NUM_IMAGES", 60)
    monkeypatch.setattr(plan_speed, "NUM_OBJECTS", 300)
    path = tmp_path / "annotations" / "instances.json"
    plan_speed.write_annotations(path)
    assert len(load_annotations(path).images) == 60
    content = json.loads(path.read_text())
    assert len(content["annotations"]) == 300 and len(content["categories"]) == 80
    known = {image["id"] for image in content["images"]}
    for one in content["annotations"]:
        assert one["image_id"] in known and len(one["segmentation"][0]) % 2 == 0
    before = path.read_bytes()
    plan_speed.write_annotations(path)
    assert path.read_bytes() == before


def test_sizes_are_spread_as_counted() -> None:
    sizes = Counter(plan_speed.draw_sizes(20_000, np.random.default_rng(1)))
    assert [size for size, _ in sizes.most_common(3)] == [(640, 480), (640, 427), (480, 640)]
    assert sizes[640, 480] / 20_000 == pytest.approx(112 / 500, abs=0.02)
    assert all(max(size) in (640, 500, 612) for size in sizes)
