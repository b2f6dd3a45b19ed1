"""Annotations that changed under a cache are refused by image, before the teacher is loaded."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from configs.loader import load_config
from stage1_dump.dump import run
from stage1_dump.estimate import estimate
from stage1_dump.prepare import prepare
from storage import IdentityError
from tests.stage1_dump.conftest import IMAGES, Configure
from tests.stage1_dump.helpers import store_bytes


def change_images(images: list[dict[str, Any]]) -> None:
    """Two are gone, one is new, and one is turned."""
    images[:] = [image for image in images if image["id"] not in (9, 21)]
    images.append({"id": 8, "file_name": "0007.png", "height": 64, "width": 90})
    image = next(image for image in images if image["id"] == 12)
    image["height"], image["width"] = image["width"], image["height"]


def test_a_change_of_the_planned_images_is_named(
    reference: Path, configure: Configure, images_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(images_folder, tmp_path / "data"))
    path = folder / "annotations/instances_train.json"
    content = json.loads(path.read_text())
    change_images(content["images"])
    kept = {image["id"] for image in content["images"]}
    content["annotations"] = [x for x in content["annotations"] if x["image_id"] in kept]
    path.write_text(json.dumps(content))
    # The weights are not even there: nothing is loaded before the refusal.
    config = configure(
        VIEWS={"NUM": 2}, DATASET={"FOLDER": str(folder)}, TEACHER={"WEIGHTS": "nowhere.pth"}
    )
    store = config.with_suffix("")
    shutil.copytree(reference, store)
    before = store_bytes(store)
    with pytest.raises(IdentityError, match=r"dataset\.sha256: stored") as refused:
        run(load_config(str(config)))
    for said in (
        "2 images are gone: 9, 21",
        "1 images are new: 8 (0007.png)",
        "1 images have another size: 12 (0012.png), whose view 0 was 64 x 96 pixels",
    ):
        assert f"\n  {said}" in str(refused.value)
    assert store_bytes(store) == before


def test_annotations_whose_images_are_the_same_may_differ_otherwise(
    configure: Configure, images_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(images_folder, tmp_path / "data"))
    path = folder / "annotations/instances_train.json"
    config = load_config(str(configure(DATASET={"FOLDER": str(folder)})))
    assert run(config).records == len(IMAGES)
    assert run(config).records == 0
    assert "not the file that the cache was dumped with" not in caplog.text
    content = json.loads(path.read_text())
    del content["annotations"][2:]
    content["images"].reverse()
    path.write_text(json.dumps(content))
    assert run(config).records == 0
    assert f"{path} is not the file that the cache was dumped with" in caplog.text


@pytest.mark.parametrize(
    "wrong", [{"TEACHER": {"WEIGHTS": "other.pth"}}, {"VIEWS": {"SEED": 12}}, {"VIEWS": {"NUM": 2}}]
)
def test_a_dump_that_died_in_its_first_batch_stands_in_nobodys_way(
    configure: Configure,
    teacher_folder: Path,
    wrong: dict[str, dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if "TEACHER" in wrong:
        wrong = {"TEACHER": {"WEIGHTS": str(teacher_folder / "other.pth")}}

    def die(*_: object) -> None:
        raise FloatingPointError("the teacher gives NaN")

    with monkeypatch.context() as patch, pytest.raises(FloatingPointError):
        patch.setattr("stage1_dump.compute.BatchComputer.submit", die)
        run(load_config(str(configure(**wrong))))
    right = load_config(str(configure()))
    prepared = prepare(right)
    assert estimate(prepared).warnings == []
    assert run(right).records == len(IMAGES)
    assert "Nothing of it is committed, so it is begun again." in caplog.text
    alone = configure("alone")
    run(load_config(str(alone)))
    assert store_bytes(Path(right.CACHE.LOCATION)) == store_bytes(alone.with_suffix(""))
