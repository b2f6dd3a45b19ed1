"""A cache of some images: both stages agree on which, and training sees no others."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from configs.loader import load_config
from detectors import Setup, training_images
from detectors.command import register_data
from stage1_dump.dump import run as dump
from stage2_distill.cache_check import open_cache
from stage2_distill.data import build_data
from storage import CacheReader
from tests.stage2_distill.conftest import Configure


def listed(path: Path, cfg: Any) -> list[int]:
    """Write a list of every third image, and return its ids."""
    ids = sorted(image["image_id"] for image in training_images(Setup(cfg)))[::3]
    path.write_text("".join(f"{image_id}\n" for image_id in ids))
    return ids


def test_a_cache_of_listed_images_serves_a_training_on_them_alone(
    configure: Configure, tmp_path: Path
) -> None:
    register_data(load_config(str(configure())))
    path = tmp_path / "images.txt"
    ids = listed(path, load_config(str(configure())))
    config = configure(
        DATASET={"IMAGE_LIST": str(path)},
        CACHE={"LOCATION": str(tmp_path / "some")},
        SOLVER={"IMS_PER_BATCH": 2},
    )
    cfg = load_config(str(config))
    dump(cfg)
    assert sorted(CacheReader(tmp_path / "some").index.image_id) == sorted(2 * ids)
    batches = iter(build_data(Setup(cfg), open_cache(Setup(cfg))).loader)
    seen = {item["image_id"] for _ in range(2 * len(ids)) for item in next(batches)}
    assert seen == set(ids)

    config = configure(CACHE={"LOCATION": str(tmp_path / "some")})
    with pytest.raises(ValueError, match=r"8 images are new, the first has the id"):
        open_cache(Setup(load_config(str(config))))


def test_a_subset_without_objects_cannot_be_trained_on(
    configure: Configure, folder: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(folder / "data", tmp_path / "data"))
    path = data / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    first = min(image["id"] for image in content["images"])
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != first]
    path.write_text(json.dumps(content))
    cfg = load_config(str(configure(DATASET={"FOLDER": str(data), "MAX_IMAGES": 1})))
    register_data(cfg)
    with pytest.raises(ValueError, match=r"no image to train on is among those of DATASET"):
        training_images(Setup(cfg))
