"""Keys of detectron2's that plain training takes: each is seen to act."""

import json
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.utils.env import seed_all_rng
from PIL import Image

from configs.loader import load_config
from detectors.__main__ import main
from detectors.command import register_data
from detectors.trainer import Trainer
from tests.tiny import DETECTOR

# Wide and high ones, so that grouping shows.
SIZES = [(64, 96), (64, 96), (96, 64), (64, 96), (96, 64), (64, 96)]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six images of noise with an object each, the last one of a rare class; two splits."""
    folder = tmp_path_factory.mktemp("stock")
    generator = np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    images, annotations = [], []
    for number, (height, width) in enumerate(SIZES, start=1):
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{number}.png")
        images.append({"id": number, "file_name": f"{number}.png", "height": height})
        images[-1]["width"] = width
        box = {"id": number, "image_id": number, "category_id": 1 + number // len(SIZES)}
        annotations.append(box | {"bbox": [8, 8, 40, 40], "area": 1600, "iscrowd": 0})
    kinds = [{"id": number, "name": f"kind{number}"} for number in (1, 2, 3)]
    for split, chosen in (("train", slice(None)), ("more", slice(2))):
        content = {
            "images": images[chosen],
            "annotations": annotations[chosen],
            "categories": kinds,
        }
        path = folder / "annotations" / f"instances_{split}.json"
        path.write_text(json.dumps(content))
    return folder


def batches(data: Path, tmp_path: Path, count: int, **nodes: Any) -> list[list[dict[str, Any]]]:
    """The first batches that plain training takes."""
    content: dict[str, Any] = {
        **DETECTOR,
        "DATASET": {"FOLDER": str(data)},
        "DATASETS": {"TRAIN": ["folder_train"]},
        "DATALOADER": {"NUM_WORKERS": 0},
        "INPUT": {"MIN_SIZE_TRAIN": [64], "RANDOM_FLIP": "none"},
        "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 2, "STEPS": []},
        "OUTPUT_DIR": str(tmp_path / "output"),
        "SEED": 1,
    }
    for node, values in nodes.items():
        content[node] = {**content[node], **values}
    path = tmp_path / "plain.yaml"
    path.write_text(yaml.safe_dump(content))
    cfg = load_config(str(path))
    register_data(cfg)
    seed_all_rng(0)
    loader = Trainer(cfg)._trainer.data_loader
    return [list(batch) for batch in islice(iter(loader), count)]


def stored(data: Path, item: dict[str, Any]) -> torch.Tensor:
    pixels = np.asarray(Image.open(data / "images" / f"{item['image_id']}.png"))[..., ::-1]
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())


def test_images_are_cropped(data: Path, tmp_path: Path) -> None:
    crop = {"ENABLED": True, "TYPE": "absolute", "SIZE": [32, 48]}
    for batch in batches(data, tmp_path, 2, INPUT={"CROP": crop}):
        assert {tuple(item["image"].shape) for item in batch} == {(3, 64, 96)}


def test_images_are_flipped_vertically(data: Path, tmp_path: Path) -> None:
    found = batches(data, tmp_path, 6, INPUT={"RANDOM_FLIP": "vertical"})
    flipped = [
        torch.equal(item["image"], stored(data, item).flip(1)) for batch in found for item in batch
    ]
    kept = [torch.equal(item["image"], stored(data, item)) for batch in found for item in batch]
    assert any(flipped) and any(kept)
    assert all(a != b for a, b in zip(flipped, kept, strict=True))


@pytest.mark.parametrize(
    ("sampler", "is_even"), [("TrainingSampler", True), ("RepeatFactorTrainingSampler", False)]
)
def test_rare_classes_are_drawn_more_often(
    data: Path, tmp_path: Path, sampler: str, is_even: bool
) -> None:
    loader = {"SAMPLER_TRAIN": sampler, "REPEAT_THRESHOLD": 1.0, "ASPECT_RATIO_GROUPING": False}
    found = batches(data, tmp_path, 12, DATALOADER=loader)
    drawn = [item["image_id"] for batch in found for item in batch]
    assert (drawn.count(len(SIZES)) == 4) == is_even


@pytest.mark.parametrize("grouped", [True, False])
def test_images_of_one_orientation_come_together(data: Path, tmp_path: Path, grouped: bool) -> None:
    found = batches(data, tmp_path, 9, DATALOADER={"ASPECT_RATIO_GROUPING": grouped})
    together = [len({item["width"] > item["height"] for item in batch}) == 1 for batch in found]
    assert all(together) == grouped


def test_two_data_sets_are_trained_on_together(data: Path, tmp_path: Path) -> None:
    both = {"TRAIN": ["folder_train", "folder_more"]}
    loader = {"ASPECT_RATIO_GROUPING": False}
    found = batches(data, tmp_path, 4, DATASETS=both, DATALOADER=loader)
    drawn = sorted(item["image_id"] for batch in found for item in batch)
    assert drawn == [1, 2, 3, 4, 5, 6, 2**48 + 1, 2**48 + 2]


@pytest.mark.parametrize("command", ["train", "eval"])
def test_the_weights_are_read(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    content = {
        **DETECTOR,
        "DATASET": {"FOLDER": str(data)},
        "DATASETS": {"TRAIN": ["folder_train"], "TEST": ["folder_more"]},
        "DATALOADER": {"NUM_WORKERS": 0},
        "OUTPUT_DIR": str(tmp_path / "output"),
    }
    path = tmp_path / "plain.yaml"
    path.write_text(yaml.safe_dump(content))
    assert main([command, "--config-file", str(path), "MODEL.WEIGHTS", "nowhere.pth"]) == 1
    assert "weights not found: nowhere.pth" in capsys.readouterr().err


@pytest.fixture(autouse=True)
def unregistered() -> Any:
    """Leave no data set of this module behind."""
    yield
    for name in ("folder_train", "folder_more"):
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
