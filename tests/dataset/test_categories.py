"""A set of some categories: what is kept, what stays as it is, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from dataset.__main__ import main
from dataset.categories import write_subset
from dataset.checking import examine
from dataset.registry import register_folder
from tests.dataset.conftest import Folder, coco_document


def written(folder: Path, split: str = "train") -> dict[str, Any]:
    found: dict[str, Any] = json.loads(
        (folder / "annotations" / f"instances_{split}.json").read_text()
    )
    return found


def ids(elements: list[dict[str, Any]]) -> list[int]:
    return [one["id"] for one in elements]


@pytest.mark.parametrize("images_in", ["images", "images/{split}", "{split}", "{split}/images", ""])
def test_objects_of_the_category_and_their_images_are_kept_as_they_are(
    make_folder: Folder, tmp_path: Path, images_in: str
) -> None:
    folder = make_folder("set", ("train", "val"), images_in)
    target = tmp_path / "dogs"
    write_subset(folder, target, ["dog"])
    for split in ("train", "val"):
        found, whole = written(target, split), coco_document()
        assert found == {
            "info": whole["info"],
            "images": [one for one in whole["images"] if one["id"] == 7],
            "annotations": [one for one in whole["annotations"] if one["category_id"] == 6],
            "categories": [{"id": 6, "name": "dog"}],
        }
    registered = register_folder(target)
    assert registered.keys() == {"folder_train", "folder_val"}
    for file, root in registered.values():
        report = examine(file, root, workers=1)
        assert (report.images, report.objects, report.problems) == (1, 1, [])
    assert not any(path.is_file() for path in (target / "images").iterdir())


def test_images_without_such_objects_are_kept_where_they_are_wanted(
    make_folder: Folder, tmp_path: Path
) -> None:
    folder = make_folder("set")
    (kept,) = write_subset(folder, tmp_path / "dogs", ["dog"], keep_empty=True)
    found = written(tmp_path / "dogs")
    assert ids(found["images"]) == [7, 3, 9] and ids(found["annotations"]) == [2]
    assert (len(kept.file_names), kept.num_objects) == (3, 1)


def test_several_categories_and_only_some_splits(make_folder: Folder, tmp_path: Path) -> None:
    folder = make_folder("set", ("train", "val"))
    write_subset(folder, tmp_path / "both", ["dog", "cat"], splits=["val"])
    assert ids(written(tmp_path / "both", "val")["categories"]) == [5, 6]
    assert ids(written(tmp_path / "both", "val")["images"]) == [7, 3]
    assert [path.name for path in (tmp_path / "both" / "images").iterdir()] == ["val"]


def test_an_image_with_a_crowd_alone_goes_and_a_crowd_beside_an_object_stays(
    make_folder: Folder, tmp_path: Path
) -> None:
    folder = make_folder("set")
    path = folder / "annotations" / "instances_train.json"
    document = written(folder)
    document["annotations"][2]["iscrowd"] = 1
    more = {"id": 4, "image_id": 7, "category_id": 5, "bbox": [1, 1, 3, 3], "iscrowd": 1}
    document["annotations"].append(more)
    path.write_text(json.dumps(document))
    write_subset(folder, tmp_path / "cats", ["cat"])
    found = written(tmp_path / "cats")
    assert ids(found["images"]) == [7] and ids(found["annotations"]) == [1, 4]


def test_file_names_that_only_the_old_folder_explains_are_written_anew(
    make_folder: Folder, tmp_path: Path
) -> None:
    folder = make_folder("set")
    path = folder / "annotations" / "instances_train.json"
    document = written(folder)
    document["images"][0]["file_name"] = "images/b.png"
    document["images"][1]["file_name"] = str(folder / "images" / "a.png")
    path.write_text(json.dumps(document))
    write_subset(folder, tmp_path / "cats", ["cat"])
    found = written(tmp_path / "cats")
    assert [one["file_name"] for one in found["images"]] == ["b.png", "a.png"]
    assert examine(*register_folder(tmp_path / "cats")["folder_train"], workers=1).problems == []


@pytest.mark.parametrize(
    ("arguments", "refused"),
    [
        (["--categories", "dogs"], "no category 'dogs', did you mean dog?; there are cat, dog"),
        (["--categories", "dog", "--split", "test"], "no split 'test'; there are train"),
        (["--categories", "dog", "--folder", "nowhere"], "nowhere: there is no such dataset"),
    ],
)
def test_what_is_not_there_is_refused_before_anything_is_written(
    make_folder: Folder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    refused: str,
) -> None:
    folder, target = make_folder("set"), tmp_path / "new"
    command = ["subset", "--folder", str(folder), "--output", str(target), *arguments]
    assert main(command) == 1
    error = capsys.readouterr().err
    assert refused in error and error.count("\n") == 1
    assert not target.exists()


def test_a_missing_image_is_refused(make_folder: Folder, tmp_path: Path) -> None:
    folder = make_folder("set")
    (folder / "images" / "a.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"1 of 2 images are missing, .*'a\.png'"):
        write_subset(folder, tmp_path / "cats", ["cat"])
    write_subset(folder, tmp_path / "dogs", ["dog"])  # which needs it not


def test_a_split_that_is_there_is_left_alone_and_another_is_added(
    make_folder: Folder, tmp_path: Path
) -> None:
    folder, target = make_folder("set", ("train", "val")), tmp_path / "dogs"
    write_subset(folder, target, ["dog"], splits=["train"])
    with pytest.raises(ValueError, match=r"instances_train\.json: is there already"):
        write_subset(folder, target, ["cat"])
    assert not (target / "annotations" / "instances_val.json").exists()
    write_subset(folder, target, ["dog"], splits=["val"], keep_empty=True)
    assert [len(written(target, split)["images"]) for split in ("train", "val")] == [1, 3]


def test_a_category_without_objects_is_refused(make_folder: Folder, tmp_path: Path) -> None:
    folder = make_folder("set")
    document = written(folder)
    document["categories"].append({"id": 8, "name": "owl"})
    (folder / "annotations" / "instances_train.json").write_text(json.dumps(document))
    with pytest.raises(ValueError, match="no image has an object of owl; name the other splits"):
        write_subset(folder, tmp_path / "owls", ["owl"])


def test_the_command_says_what_it_wrote(
    make_folder: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, target = make_folder("set"), tmp_path / "dogs"
    command = ["subset", "--folder", str(folder), "--categories", "dog", "--output", str(target)]
    assert main(command) == 0
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("train: 1 images, 1 objects of dog; images/train links to ")
    assert last == f"set DATASET.FOLDER {target}, and NUM_CLASSES 1"
