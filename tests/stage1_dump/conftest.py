"""A teacher of a few thousand weights, a folder of tiny images, and configs that name both."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from detectors import export_model
from tests.stage1_dump.helpers import dump
from tests.tiny import DETECTOR, random_detector, write_config

# (id, height, width): two orientations, ids with gaps and out of order; 40 has no object.
IMAGES = [
    (7, 64, 90), (3, 64, 90), (40, 60, 96), (12, 96, 64), (9, 90, 60),
    (21, 64, 96), (5, 64, 96), (30, 96, 60), (33, 62, 92), (2, 64, 80),
]  # fmt: skip

Configure = Callable[..., Path]


@pytest.fixture(scope="session")
def images_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in COCO format; tests that change it copy it first."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    generator = np.random.default_rng(5)
    images, annotations = [], []
    for image_id, height, width in IMAGES:
        pixels = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
        name = f"{image_id:04d}.png"
        Image.fromarray(pixels).save(folder / "images" / name)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        if image_id != 40:
            box = {"id": len(annotations) + 1, "image_id": image_id, "category_id": 1}
            annotations.append(box | {"bbox": [4, 4, 30, 30], "area": 900, "iscrowd": 0})
    categories = [{"id": number, "name": f"kind{number}"} for number in (1, 2, 3)]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(content))
    return folder


@pytest.fixture(scope="session")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`teacher.yaml`, `teacher.pth`, and `other.pth` with the weights of another teacher."""
    folder = tmp_path_factory.mktemp("teacher")
    cfg = write_config(folder / "teacher.yaml", DETECTOR)
    for seed, name in enumerate(("teacher.pth", "other.pth")):
        export_model(random_detector(cfg, seed), folder / name)
    return folder


@pytest.fixture
def configure(tmp_path: Path, images_folder: Path, teacher_folder: Path) -> Configure:
    """Write a config; keyword arguments such as `VIEWS={"NUM": 2}` change its nodes.

    The cache `name` lies beside its config `name.yaml`.
    """

    def write(name: str = "cache", **nodes: dict[str, object]) -> Path:
        return write_dump_config(tmp_path / name, images_folder, teacher_folder, nodes)

    return write


@pytest.fixture(scope="session")
def reference(
    tmp_path_factory: pytest.TempPathFactory, images_folder: Path, teacher_folder: Path
) -> Path:
    """A cache of two views, dumped in one go by one process. Nobody may change it."""
    store = tmp_path_factory.mktemp("reference") / "cache"
    dump(write_dump_config(store, images_folder, teacher_folder, {"VIEWS": {"NUM": 2}}))
    return store


def write_dump_config(
    store: Path, images_folder: Path, teacher_folder: Path, nodes: dict[str, dict[str, object]]
) -> Path:
    content: dict[str, dict[str, object]] = {
        "MODEL": {"DEVICE": "cpu"},
        "DATASET": {"FOLDER": str(images_folder)},
        "DATASETS": {"TRAIN": ["folder_train"]},
        "DATALOADER": {"NUM_WORKERS": 0},
        "VIEWS": {"SCALES": [64, 80], "MAX_SIZE": 96, "NUM": 1, "SEED": 11},
        "TEACHER": {
            "CONFIG": str(teacher_folder / "teacher.yaml"),
            "WEIGHTS": str(teacher_folder / "teacher.pth"),
            "BATCH": 2,
        },
        "CACHE": {"LOCATION": str(store), "PRESET": "exact", "SHARD_RECORDS": 3},
    }
    for node, values in nodes.items():
        content.setdefault(node, {}).update(values)
    path = store.with_suffix(".yaml")
    output = str(store.with_name("output"))
    path.write_text(yaml.safe_dump({"VERSION": 2, "OUTPUT_DIR": output, **content}))
    return path
