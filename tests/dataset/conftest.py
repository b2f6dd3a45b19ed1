"""Small datasets on disk, for the tests of the dataset package."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataset.views import View
from dataset.views.flip import Flip
from dataset.views.resize import Resize

Folder = Callable[..., Path]


def coco_document() -> dict[str, Any]:
    """A valid COCO file: three images of different sizes, one of them without objects."""
    return {
        "info": {"description": "a test"},
        "images": [
            {"id": 7, "file_name": "b.png", "height": 20, "width": 30},
            {"id": 3, "file_name": "a.png", "height": 24, "width": 16},
            {"id": 9, "file_name": "sub/c.png", "height": 10, "width": 10},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 5, "bbox": [2, 3, 10, 12.5], "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 6, "bbox": [0, 0, 30, 20], "iscrowd": 0},
            {"id": 3, "image_id": 3, "category_id": 5, "bbox": [1, 1, 5, 5], "iscrowd": 0},
        ],
        "categories": [{"id": 5, "name": "cat"}, {"id": 6, "name": "dog"}],
    }


def write_images(root: Path, document: dict[str, Any]) -> None:
    """Write a random image for every entry that can be written."""
    rng = np.random.default_rng(0)
    for image in document["images"]:
        path = root / image["file_name"]
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (image["height"], image["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


@pytest.fixture
def document() -> dict[str, Any]:
    return coco_document()


@pytest.fixture
def write_json(tmp_path: Path) -> Callable[[Any], Path]:
    """Write a value, or raw text, as an annotation file."""

    def write(value: Any) -> Path:
        path = tmp_path / "annotations.json"
        path.write_text(value if isinstance(value, str) else json.dumps(value))
        return path

    return write


@pytest.fixture
def make_folder(tmp_path: Path) -> Folder:
    """Write a whole COCO-format folder with images under `images_in`."""

    def make(name: str, splits: tuple[str, ...] = ("train",), images_in: str = "images") -> Path:
        folder = tmp_path / name
        (folder / "annotations").mkdir(parents=True)
        for split in splits:
            document = coco_document()
            write_images(folder / images_in.format(split=split), document)
            path = folder / "annotations" / f"instances_{split}.json"
            path.write_text(json.dumps(document))
        return folder

    return make


OTHER_PROCESS = """
import json, sys, torch
torch.set_num_threads(3)
from dataset.registry import locate
from dataset.views import render
from tests.dataset.conftest import view_of
crc32c = render(sys.argv[1], view_of(77, 115, flip=True)).crc32c
print(json.dumps({"crc32c": crc32c, "coco_2017_val": locate("coco_2017_val")}))
"""


def view_of(
    height: int, width: int, *, flip: bool = False, stored: tuple[int, int] = (40, 60)
) -> View:
    """A view of `height` x `width` pixels, whatever its seed would give."""
    steps = ((Resize(scales=(1,), max_size=1), (height, width)), (Flip(probability=0.5), flip))
    sizes = (stored, (height, width), (height, width))
    return View(image_id=1, view=0, seed=0, steps=steps, sizes=sizes)


def pattern(height: int, width: int) -> np.ndarray:
    """A picture that is the same everywhere and for all time, (height, width, 3) uint8."""
    rows, columns = np.mgrid[0:height, 0:width]
    pixels = np.stack([rows * 7 % 256, columns * 5 % 256, (rows + columns) * 3 % 256], axis=-1)
    return pixels.astype(np.uint8)


@pytest.fixture(scope="session")
def other_process(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What another process finds, with other threads and its own $DETECTRON2_DATASETS.

    One process for several tests, because importing detectron2 takes it seconds.
    """
    root = tmp_path_factory.mktemp("datasets")
    annotations = root / "coco" / "annotations" / "instances_val2017.json"
    annotations.parent.mkdir(parents=True)
    annotations.write_text("{}")
    (root / "coco" / "val2017").mkdir()
    Image.fromarray(pattern(40, 60)).save(root / "image.png")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", OTHER_PROCESS, str(root / "image.png")],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            "DETECTRON2_DATASETS": str(root),
            "OMP_NUM_THREADS": "3",
            "PYTHONHASHSEED": "5",
        },
        capture_output=True,
        text=True,
        check=True,
    )
    return {"datasets": root, "image": root / "image.png", **json.loads(done.stdout)}
