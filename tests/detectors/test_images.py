"""The mapper: detectron2's inputs, from images that are read in one place."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper
from detectron2.structures import BoxMode
from detectron2.utils.env import seed_all_rng
from PIL import Image

from detectors.images import ImageMapper


@pytest.fixture
def item(tmp_path: Path) -> dict[str, Any]:
    """An image of a data set, 30x40, with an object and a crowd."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    one = {"bbox": [2, 3, 10, 20], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 1, "iscrowd": 0}
    size = {"height": 30, "width": 40}
    name = str(tmp_path / "a.png")
    return {**size, "file_name": name, "image_id": 5, "annotations": [one, {**one, "iscrowd": 1}]}


@pytest.mark.parametrize("is_train", [True, False])
@pytest.mark.parametrize("image_format", ["BGR", "RGB"])
def test_an_input_is_that_of_detectron2s_own_mapper(
    item: dict[str, Any], is_train: bool, image_format: str
) -> None:
    cfg = get_cfg()
    cfg.INPUT.FORMAT = image_format
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MIN_SIZE_TEST = (33, 47), 35
    found = []
    for mapper in (ImageMapper(cfg, is_train=is_train), DatasetMapper(cfg, is_train=is_train)):
        seed_all_rng(4)
        found.append([mapper(item) for _ in range(3)])
    for ours, theirs in zip(*found, strict=True):
        assert ours.keys() == theirs.keys()
        assert torch.equal(ours.pop("image"), theirs.pop("image"))
        if is_train:
            one, other = ours.pop("instances"), theirs.pop("instances")
            assert torch.equal(one.gt_boxes.tensor, other.gt_boxes.tensor)
            assert torch.equal(one.gt_classes, other.gt_classes)
        assert ours == theirs


def test_a_size_that_a_data_set_leaves_out_is_that_of_the_image(item: dict[str, Any]) -> None:
    del item["height"], item["width"]
    found = ImageMapper(get_cfg(), is_train=False)(item)
    assert (found["height"], found["width"]) == (30, 40)


def test_an_image_of_another_size_is_refused_by_name(item: dict[str, Any]) -> None:
    item["height"] = 31
    with pytest.raises(ValueError, match=r"a\.png: expected 31x40 pixels .* found 30x40"):
        ImageMapper(get_cfg(), is_train=True)(item)


def test_an_image_of_which_nothing_would_be_left_is_named(
    item: dict[str, Any], tmp_path: Path
) -> None:
    Image.fromarray(np.zeros((3, 2000, 3), np.uint8)).save(tmp_path / "a.png")
    cfg = get_cfg()
    cfg.INPUT.MAX_SIZE_TEST = 100
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "relative", [0.1, 0.1]
    for is_train, key in ((True, "INPUT.CROP.SIZE"), (False, "INPUT.MAX_SIZE_TEST")):
        with pytest.raises(ValueError, match=rf"a\.png: its 3x2000 pixels .*; raise .*{key}"):
            ImageMapper(cfg, is_train=is_train)(item | {"height": 3, "width": 2000})
