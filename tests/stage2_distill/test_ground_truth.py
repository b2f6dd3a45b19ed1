"""The objects of a view that moves, cuts and pads: those of detectron2's own mapper."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetMapper
from detectron2.data.transforms import Augmentation as Augment
from detectron2.data.transforms import TransformList
from detectron2.structures import BoxMode
from PIL import Image

from configs.loader import load_config
from dataset.views import plan_view
from detectors import Setup
from stage2_distill.data import ViewDataset
from stage2_distill.sampler import Draw
from tests.dataset.conftest import pattern
from tests.tiny import write_config

VIEWS = {
    "SCALES": [], "MAX_SIZE": 0, "SCALE_RANGE": [0.5, 3.0], "FIXED_SIZE": [64, 96],
    "CROP": ["relative_range", 0.4, 0.4], "FLIP_VERTICAL": 0.5, "NUM": 30,
}  # fmt: skip


class Fixed(Augment):
    """What a view does, as detectron2's mapper takes it."""

    def __init__(self, transforms: TransformList) -> None:
        super().__init__()
        self._transforms = transforms

    def get_transform(self, image: Any) -> TransformList:
        return self._transforms


@pytest.fixture
def image(tmp_path: Path) -> dict[str, Any]:
    """An image of 60x100 with small objects all over, some of them crowds."""
    path = tmp_path / "image.png"
    Image.fromarray(pattern(60, 100)).save(path)
    corners = np.random.default_rng(0).uniform(0, [85, 45], (12, 2)).tolist()
    objects = [
        {"bbox": [x, y, 12, 9], "bbox_mode": BoxMode.XYWH_ABS, "category_id": number,
         "iscrowd": int(number % 4 == 3)}
        for number, (x, y) in enumerate(corners)
    ]  # fmt: skip
    size = {"height": 60, "width": 100, "image_id": 5}
    return {"file_name": str(path), **size, "annotations": objects}


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    write_config(tmp_path / "c.yaml", {"VERSION": 2, "VIEWS": VIEWS})
    return Setup(load_config(str(tmp_path / "c.yaml")))


def test_pixels_and_objects_are_those_of_detectron2_s_mapper(
    setup: Setup, image: dict[str, Any]
) -> None:
    dataset = ViewDataset([image], setup, None)
    left = []
    for number in range(30):
        item = dataset[Draw(position=0, view=number)]
        view = plan_view(setup.augmentation, image_id=5, view=number, height=60, width=100)
        mapper = DatasetMapper(
            is_train=True, augmentations=[Fixed(view.transforms())],
            image_format=setup.cfg.INPUT.FORMAT,
        )  # fmt: skip
        expected = mapper(image)
        assert torch.equal(item["image"], expected["image"])
        truth, stock = item["instances"], expected["instances"]
        assert truth.image_size == stock.image_size == (64, 96)
        assert torch.equal(truth.gt_boxes.tensor, stock.gt_boxes.tensor)
        assert truth.gt_classes.tolist() == stock.gt_classes.tolist()
        left.append(len(truth))
    assert min(left) < 5 and max(left) == 9


def test_a_view_that_shows_no_object_has_none(setup: Setup, image: dict[str, Any]) -> None:
    corner = {"bbox": [0, 0, 12, 12], "bbox_mode": BoxMode.XYWH_ABS, "category_id": 0}
    dataset = ViewDataset([{**image, "annotations": [corner]}], setup, None)
    truths = [dataset[Draw(position=0, view=number)]["instances"] for number in range(30)]
    empty = [truth for truth in truths if len(truth) == 0]
    assert 5 < len(empty) < 30
    assert all(truth.gt_boxes.tensor.shape == (0, 4) for truth in empty)
