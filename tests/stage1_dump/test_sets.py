"""A cache of several data sets: whose records are which, and what a dump and its checks say."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.loader import load_config
from stage1_dump.__main__ import main
from stage1_dump.evaluate import evaluate_cache
from stage1_dump.existing import look_at
from stage1_dump.prepare import prepare
from storage import CacheReader
from tests.stage1_dump.conftest import Configure
from tests.stage1_dump.helpers import dump

Capture = pytest.CaptureFixture[str]
STEP = 2**48
# Of either set: all ids of the second are ids of the first too, and mean other images there.
FIRST, SECOND = (7, 3, 40, 12, 9, 21), (5, 30, 33, 2)


@pytest.fixture
def two(images_folder: Path, tmp_path: Path) -> Path:
    """A folder of the splits `a` and `b`."""
    folder = tmp_path / "two"
    (folder / "annotations").mkdir(parents=True)
    shutil.copytree(images_folder / "images", folder / "images")
    document = json.loads((images_folder / "annotations/instances_train.json").read_text())
    for split, ids in (("a", FIRST), ("b", SECOND)):
        numbers = {own: FIRST[row] for row, own in enumerate(ids)}
        part = {
            **document,
            "images": [
                {**one, "id": numbers[one["id"]]} for one in document["images"] if one["id"] in ids
            ],
            "annotations": [
                {**one, "image_id": numbers[one["image_id"]]}
                for one in document["annotations"]
                if one["image_id"] in ids
            ],
        }
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(part))
    return folder


def nodes_of(folder: Path, *splits: str, **data: Any) -> dict[str, Any]:
    return {
        "DATASET": {"FOLDER": str(folder), **data},
        "DATASETS": {"TRAIN": [f"folder_{split}" for split in splits]},
        "VIEWS": {"NUM": 2},
        "TEACHER": {"BATCH": 1},  # else the batches differ, and the last bits
    }


def records(store: str) -> dict[tuple[int, int], dict[str, Any]]:
    reader = CacheReader(store)
    keys = zip(reader.index.image_id.tolist(), reader.index.view.tolist(), strict=True)
    return dict(zip(keys, reader.read_many(range(len(reader.index))), strict=True))


def test_a_cache_of_two_sets_holds_the_images_of_both(
    configure: Configure, two: Path, tmp_path: Path, capsys: Capture
) -> None:
    config = configure("both", **nodes_of(two, "a", "b"))
    dump(config)
    dump(configure("alone", **nodes_of(two, "a")))
    found, alone = records(str(tmp_path / "both")), records(str(tmp_path / "alone"))
    assert {image for image, _ in found} == {*FIRST, *(STEP + one for one in FIRST[:4])}
    for key, record in alone.items():  # the same seeds, so the same views
        assert all(np.array_equal(found[key][name], value) for name, value in record.items())
    assert main(["check", "--config-file", str(config)]) == 0
    stated = CacheReader(str(tmp_path / "both")).manifest.dataset["sets"]
    assert [(one["name"], one["images"]) for one in stated] == [("folder_a", 6), ("folder_b", 4)]
    # Each set is evaluated by its own file.
    annotations = two / "annotations"
    for split, count in (("a", 6), ("b", 4)):
        evaluation = evaluate_cache(
            str(tmp_path / "both"), str(annotations / f"instances_{split}.json")
        )
        assert (evaluation.images, list(evaluation.views)) == (count, [0, 1])
    of_a = evaluate_cache(str(tmp_path / "both"), str(annotations / "instances_a.json"))
    assert (
        of_a.views
        == evaluate_cache(str(tmp_path / "alone"), str(annotations / "instances_a.json")).views
    )
    with pytest.raises(ValueError, match=r"not describe .* a set of .*, which are folder_a, fold"):
        (annotations / "instances_c.json").write_text(
            (annotations / "instances_a.json").read_text().replace("0012.png", "0030.png")
        )
        evaluate_cache(str(tmp_path / "both"), str(annotations / "instances_c.json"))
    # Another order is another cache.
    capsys.readouterr()
    assert main(["run", "--config-file", str(configure("both", **nodes_of(two, "b", "a")))]) == 1
    error = capsys.readouterr().err
    assert "data sets: stored folder_a, folder_b, wanted folder_b, folder_a\n" in error
    assert "images are" not in error  # gone or new: they have other ids alone
    alone = load_config(str(configure("both", **nodes_of(two, "a"))))
    found = look_at(prepare(alone))
    assert found and found.differences == (
        "data sets: stored folder_a, folder_b, wanted a single set (its name is not kept)",
    )


def test_missing_images_of_both_sets_are_listed_and_can_be_left_out(
    configure: Configure, two: Path, tmp_path: Path, capsys: Capture
) -> None:
    for name in ("0012.png", "0030.png"):
        (two / "images" / name).unlink()
    assert main(["run", "--config-file", str(configure(**nodes_of(two, "a", "b")))]) == 1
    assert "DATASET.EXCLUDE" in capsys.readouterr().err
    found = tmp_path / "output/unreadable_images.txt"
    ids = [int(line.partition("#")[0]) for line in found.read_text().splitlines()]
    assert ids == [12, STEP + 3]
    dump(configure(**nodes_of(two, "a", "b", EXCLUDE=str(found))))
    assert CacheReader(str(tmp_path / "cache")).manifest.excluded == tuple(ids)


def test_the_first_images_are_those_of_each_set(configure: Configure, two: Path) -> None:
    prepared = prepare(load_config(str(configure(**nodes_of(two, "a", "b", MAX_IMAGES=2)))))
    assert prepared.images.ids.tolist() == [3, 7, STEP + 3, STEP + 7]


def test_sets_of_other_categories_are_refused(
    configure: Configure, two: Path, capsys: Capture
) -> None:
    path = two / "annotations/instances_b.json"
    path.write_text(path.read_text().replace("kind2", "other"))
    assert main(["plan", "--config-file", str(configure(**nodes_of(two, "a", "b")))]) == 1
    assert "2 is 'kind2' there and 'other' here" in capsys.readouterr().err
