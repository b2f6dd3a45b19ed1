"""One annotation file parted in two: what stays, what decides, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataset.__main__ import main
from dataset.checking import examine
from dataset.registry import register_folder
from dataset.split import Parted, write_split

NAMES = ("cat", "dog", "owl", "fox")


def make(folder: Path, shown: dict[int, Iterable[int]], file: str = "result.json") -> Path:
    """Write a set: image id to the category ids that it shows."""
    (folder / "images").mkdir(parents=True)
    objects = [(image_id, one) for image_id, many in shown.items() for one in many]
    document = {
        "info": {"year": 2024},
        "licenses": [{"id": 1, "name": "CC0"}],
        "images": [
            {"id": one, "file_name": f"images/{one}.png", "height": 8, "width": 8, "license": 1}
            for one in shown
        ],
        "annotations": [
            {"id": n, "image_id": image, "category_id": one, "bbox": [1, 1, 4, 4], "by": "me"}
            for n, (image, one) in enumerate(objects, 1)
        ],
        "categories": [{"id": n, "name": name} for n, name in enumerate(NAMES, 1)],
    }
    for one in shown:
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "images" / f"{one}.png")
    path = folder / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(document))
    return path


def read(folder: Path, name: str) -> dict[str, Any]:
    path = folder / "annotations" / f"instances_{name}.json"
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def val_ids(parted: Parted) -> set[int]:
    return set(parted.parts[1].file_names)


def many(count: int) -> dict[int, list[int]]:
    return {number: [1, 2, 3, 4] for number in range(count)}


def test_nothing_is_lost_and_both_sets_are_sound(tmp_path: Path) -> None:
    path = make(tmp_path / "export", {**many(20), 50: [], 51: []})
    whole = json.loads(path.read_text())
    whole["annotations"][0] |= {"iscrowd": 1, "segmentation": [[1, 1, 2, 2, 3, 1]]}
    path.write_text(json.dumps(whole))
    target = tmp_path / "new"
    write_split(path, target, val=0.3, seed=1)
    found = [read(target, name) for name in ("train", "val")]
    for section in ("images", "annotations"):
        merged = [one for part in found for one in part[section]]
        for one in whole["images"]:
            one["file_name"] = Path(one["file_name"]).name
        assert sorted(merged, key=lambda one: one["id"]) == whole[section]
    for part in found:
        assert part["images"]
        assert {key: part[key] for key in ("info", "licenses", "categories")} == {
            key: whole[key] for key in ("info", "licenses", "categories")
        }
        ids = {one["id"] for one in part["images"]}
        assert {one["image_id"] for one in part["annotations"]} <= ids
    registered = register_folder(target)
    assert registered.keys() == {"folder_train", "folder_val"}
    for file, root in registered.values():
        assert examine(file, root, workers=1).problems == []


def test_the_seed_decides_and_images_that_are_added_move_no_other(tmp_path: Path) -> None:
    paths = [make(tmp_path / str(count), many(count)) for count in (200, 260)]
    few, again, more, other = (
        val_ids(write_split(path, tmp_path / f"out{number}", val=0.2, seed=seed))
        for number, (path, seed) in enumerate(
            [(paths[0], 1), (paths[0], 1), (paths[1], 1), (paths[0], 2)]
        )
    )
    assert few == again == {one for one in more if one < 200}
    assert len(few & other) < len(few)
    assert 20 < len(few) < 60


@pytest.mark.parametrize("seed", range(20))
def test_each_class_of_two_images_is_in_both_sets(tmp_path: Path, seed: int) -> None:
    shown = {n: [1] for n in range(30)} | {40: [2, 1], 41: [2, 3], 42: [3], 43: [4, 1], 44: [4]}
    parted = write_split(make(tmp_path / "in", shown), tmp_path / "out", val=0.1, seed=seed)
    assert parted.notes == ()
    for name in ("train", "val"):
        found = {one["category_id"] for one in read(tmp_path / "out", name)["annotations"]}
        assert found == {1, 2, 3, 4}


@pytest.mark.parametrize("seed", range(5))
def test_a_class_that_cannot_be_in_both_is_named(tmp_path: Path, seed: int) -> None:
    shown = {1: [1, 2], 2: [1, 2], 3: [4], **{n: [1] for n in range(10, 20)}}
    parted = write_split(make(tmp_path / "in", shown), tmp_path / "out", val=0.2, seed=seed)
    owl, fox = parted.notes
    assert owl == "1 of 4 classes are in neither set, as no image shows them: 3 'owl'"
    assert fox.startswith("1 of 4 classes are in ")
    assert fox.endswith(" alone, as one image shows each: 4 'fox'")


def test_many_classes_that_are_not_in_both_sets_are_a_line(tmp_path: Path) -> None:
    path = make(tmp_path / "in", {number: [1] for number in range(4)})
    document = json.loads(path.read_text())
    document["categories"] = [{"id": n, "name": f"c{n}"} for n in range(1, 1001)]
    path.write_text(json.dumps(document))
    (note,) = write_split(path, tmp_path / "out", val=0.5, seed=0).notes
    named = "2 'c2', 3 'c3', 4 'c4', 5 'c5', 6 'c6', and 994 more"
    assert note == f"999 of 1000 classes are in neither set, as no image shows them: {named}"


def test_a_class_whose_images_are_needed_where_they_are_is_named(tmp_path: Path) -> None:
    shown = {1: [1, 2], 2: [2, 3], 3: [1, 3]}  # of three classes in three images, one is left over
    parted = write_split(make(tmp_path / "in", shown), tmp_path / "out", val=0.5, seed=0)
    found = [note for note in parted.notes if "fox" not in note]
    assert len(found) == 1 and "to move any of their images takes another class" in found[0]


@pytest.mark.parametrize("val", [0.001, 0.999])
def test_neither_set_is_empty(tmp_path: Path, val: float) -> None:
    parted = write_split(make(tmp_path / "in", many(2)), tmp_path / "out", val=val, seed=0)
    assert [len(part.file_names) for part in parted.parts] == [1, 1]


@pytest.mark.parametrize("file", ["result.json", "annotations/instances_default.json"])
def test_the_folder_of_the_images_itself_takes_the_sets(tmp_path: Path, file: str) -> None:
    path = make(tmp_path / "in", many(8), file)
    write_split(path, tmp_path / "in", val=0.4, seed=0)
    assert not any(one.is_symlink() for one in (tmp_path / "in" / "images").iterdir())
    for name, (written, root) in register_folder(tmp_path / "in").items():
        assert name.endswith("default") or examine(written, root, workers=1).problems == []


def test_images_elsewhere_are_named_by_an_option(tmp_path: Path) -> None:
    path = make(tmp_path / "in", many(8))
    path = path.rename(tmp_path / "moved.json")
    with pytest.raises(FileNotFoundError, match="its first image"):
        write_split(path, tmp_path / "out", val=0.4, seed=0)
    write_split(path, tmp_path / "out", val=0.4, seed=0, images=tmp_path / "in")
    assert (tmp_path / "out" / "images" / "val").resolve() == (tmp_path / "in").resolve()


@pytest.mark.parametrize(
    ("change", "refused"),
    [
        ({"images": []}, "the list `images` is empty"),
        ({"annotations": None}, "`annotations` must be a list"),
        ({"images": [{"id": 0, "file_name": "0.png", "height": 8, "width": 8}],
          "annotations": []}, "expected two images or more to split, got one; add images"),
        ({"images": [{"id": n, "file_name": f"{n}.png", "height": 8, "width": 8}
                     for n in (0, 77)], "annotations": []}, "1 of 2 images are missing"),
    ],
)  # fmt: skip
def test_what_check_refuses_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], change: dict[str, Any], refused: str
) -> None:
    path = make(tmp_path / "in", many(3))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    target = tmp_path / "out"
    assert main(["split", "--annotations", str(path), "--output", str(target)]) == 1
    error = capsys.readouterr().err
    assert refused in error and error.count("\n") == 1
    assert not target.exists()


@pytest.mark.parametrize("val", ["0", "1", "-0.1", "20", "nan"])
def test_a_share_out_of_range_is_wrong_use(tmp_path: Path, val: str) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["split", "--annotations", "x", "--output", "y", "--val", val])
    assert caught.value.code == 2
    with pytest.raises(ValueError, match="--val must lie between 0 and 1"):
        write_split("x", tmp_path, val=float(val), seed=0)


def test_sets_that_are_there_are_left_alone(tmp_path: Path) -> None:
    path = make(tmp_path / "in", many(5))
    write_split(path, tmp_path / "out", val=0.5, seed=0)
    before = read(tmp_path / "out", "val")
    with pytest.raises(ValueError, match=r"instances_train\.json: is there already"):
        write_split(path, tmp_path / "out", val=0.5, seed=1)
    assert read(tmp_path / "out", "val") == before


def test_the_file_that_is_parted_is_not_said_to_be_removed(tmp_path: Path) -> None:
    path = make(tmp_path / "in", many(5), "annotations/instances_train.json")
    with pytest.raises(ValueError, match=f"^{path}: is there already; choose another --output$"):
        write_split(path, tmp_path / "in", val=0.5, seed=0)


def test_the_command_says_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, target = make(tmp_path / "in", {**many(9), 9: []}), tmp_path / "my sets"
    command = ["split", "--annotations", str(path), "--output", str(target), "--seed", "3"]
    assert main(command) == 0
    train, val, images, last = capsys.readouterr().out.splitlines()
    assert train.startswith("train: ") and val.startswith("val: ") and images.endswith("/images")
    assert last == f"set DATASET.FOLDER '{target}', and NUM_CLASSES 4"
