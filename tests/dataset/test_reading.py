"""The one reader: a kind of input is a line of a table, with what every command makes of it."""

import copy
import json
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dataset import objects as objects_module
from dataset import reading
from dataset.annotations import dataset_fingerprint
from dataset.checking import Report, examine
from dataset.forms import coco_ground_truth, dataset_dicts
from dataset.reading import load_annotations, read_annotations
from tests.dataset.conftest import coco_document, write_images

Document = dict[str, Any]
Edit = Callable[[Document], object]
GONE = object()
NAN, INFINITY = float("nan"), float("inf")


def every(section: str, **changes: Any) -> Edit:
    """Change keys of every element of a section; `GONE` removes one."""

    def edit(document: Document) -> None:
        for element in document[section]:
            for key, value in changes.items():
                element[key] = value
                if value is GONE:
                    del element[key]

    return edit


def first(section: str, **changes: Any) -> Edit:
    """As `every`, for the first element alone."""
    return lambda document: every(section, **changes)({section: document[section][:1]})


def turn(section: str, key: str, function: Callable[[Any], Any]) -> Edit:
    """Apply a function to a key of every element."""
    return lambda document: [
        element.update({key: function(element[key])}) for element in document[section]
    ]


def both(*edits: Edit) -> Edit:
    return lambda document: [edit(document) for edit in edits]


def top(**changes: Any) -> Edit:
    """Change the document's own keys."""
    return lambda document: every("all", **changes)({"all": [document]})


IDS_AS_TEXT = both(turn("images", "id", str), turn("annotations", "image_id", str))
RLE = {"counts": [0, 4, 596], "size": [20, 30]}

FILLED_IN: dict[str, Edit] = {
    "no iscrowd": every("annotations", iscrowd=GONE),
    "null iscrowd": every("annotations", iscrowd=None),
    "iscrowd false": every("annotations", iscrowd=False),
    "iscrowd 0.0": every("annotations", iscrowd=0.0),
    "no area": every("annotations", area=GONE),
    "null area": every("annotations", area=None),
    "no segmentation": every("annotations", segmentation=GONE),
    "null segmentation": every("annotations", segmentation=None),
    "empty segmentation": every("annotations", segmentation=[]),
    "flat segmentation, VIA": every("annotations", segmentation=[2, 3, 12, 3, 12, 15]),
    "polygons of two points": every("annotations", segmentation=[[2, 3, 12, 15]]),
    "polygons of odd length": every("annotations", segmentation=[[2, 3, 12, 15, 7, 8, 9]]),
    "empty polygons": every("annotations", segmentation=[[]]),
    "RLE": every("annotations", segmentation=RLE),
    "NaN segmentation, pandas": every("annotations", segmentation=NAN),
    "text segmentation": every("annotations", segmentation="polygon"),
    "objects of ids and boxes alone": both(
        every("annotations", iscrowd=GONE, area=GONE), top(info=GONE, licenses=GONE)
    ),
    "whole floats for sizes": both(turn("images", "width", float), turn("images", "height", float)),
    "whole floats for ids": both(
        turn("images", "id", float),
        turn("annotations", "id", float),
        turn("annotations", "image_id", float),
        turn("annotations", "category_id", float),
        turn("categories", "id", float),
    ),
    "floats for boxes": turn("annotations", "bbox", lambda box: [float(x) for x in box]),
    "false ignore, Label Studio": every("annotations", ignore=0),
    "null info and licenses": top(info=None, licenses=None),
    "other keys, CVAT": every("annotations", attributes={"occluded": False}),
    "null supercategory": every("categories", supercategory=None),
    "sections in another order": lambda document: [
        document.update({key: document.pop(key)}) for key in ("images", "info")
    ],
}

# Edit -> words of the one error that it gives.
REFUSED: dict[str, tuple[Edit, str]] = {
    "text image ids": (IDS_AS_TEXT, r"images\[0\]: `id` must be an integer, got str '7'"),
    "text image id, one": (first("images", id="7"), r"got str '7'; write 7, without quotes"),
    "null image id": (first("images", id=None), r"images\[0\]: `id` .* nothing; write a number of"),
    "no image id": (first("images", id=GONE), r"images\[0\]: `id` must be an integer, got noth"),
    "fraction image id": (first("images", id=7.5), r"images\[0\]: `id` must be .* float 7\.5"),
    "true as id": (first("images", id=True), r"images\[0\]: `id` must be .* bool True"),
    "NaN width": (first("images", width=NAN), r"b\.png: image 7: `width` must be .* float nan"),
    "text width": (first("images", width="30"), r"b\.png: image 7: `width` .*write 30, without"),
    "infinite height": (first("images", height=INFINITY), r"image 7: `height` must be an integer"),
    "list for file name": (first("images", file_name=["b.png"]), "image 7: `file_name` must be a"),
    "no file name": (first("images", file_name=GONE), "image 7: `file_name` must be a name"),
    "image that is no object": (lambda d: d["images"].__setitem__(0, "b.png"), r"images\[0\] must"),
    "image ids given twice": (
        both(every("images", id=7), top(annotations=[])), r"image id 7 is also that of b\.png"),
    "text category ids": (
        first("annotations", category_id="5"), r"b\.png: annotations\[0\]: `category_id` must be"),
    "null category id": (first("annotations", category_id=None), "`category_id` must be an int"),
    "no annotation id": (first("annotations", id=GONE), r"annotations\[0\]: `id` must be an int"),
    "object for image id": (first("annotations", image_id={}), r"`image_id` must be .* dict \{\}"),
    "annotation ids given twice": (
        every("annotations", id=0), r"annotations\[1\]: annotation id 0 is given twice, and so"),
    "object that is none": (
        lambda d: d["annotations"].__setitem__(0, [1]), r"annotations\[0\] must be an object"),
    "null box": (first("annotations", bbox=None), r"b\.png: annotation 1: `bbox` must be 4 num"),
    "no box": (first("annotations", bbox=GONE), "annotation 1: `bbox` must be 4 numbers"),
    "box as object": (first("annotations", bbox={"x": 2}), "annotation 1: `bbox` must be 4 numb"),
    "box of text": (first("annotations", bbox=["2", 3, 4, 5]), "`bbox` must be 4 numbers"),
    "box of three": (first("annotations", bbox=[2, 3, 4]), "write .left, top, width, height"),
    "NaN in a box": (first("annotations", bbox=[2, 3, NAN, 5]), "`bbox` must be 4 numbers"),
    "infinity in a box": (first("annotations", bbox=[2, 3, 4, INFINITY]), "`bbox` must be 4 num"),
    "endless integer in a box": (first("annotations", bbox=[10**400, 3, 4, 5]), "`bbox` must be"),
    "true in a box": (first("annotations", bbox=[True, 3, 4, 5]), "`bbox` must be 4 numbers"),
    "negative size": (first("annotations", bbox=[9, 9, -4, 5]), "has a negative size; write"),
    "list for area": (first("annotations", area=[120]), "annotation 1: `area` must be a number"),
    "text for area": (first("annotations", area="120"), "`area` must be .*; leave it out"),
    "NaN area": (first("annotations", area=NAN), "`area` must be a number .* float nan"),
    "negative area": (first("annotations", area=-1), "`area` must be a number .* int -1"),
    "text for iscrowd": (first("annotations", iscrowd="0"), "`iscrowd` must be 0 or 1, got str"),
    "list for iscrowd": (first("annotations", iscrowd=[0]), "`iscrowd` must be 0 or 1"),
    "NaN iscrowd": (first("annotations", iscrowd=NAN), "`iscrowd` must be 0 or 1"),
    "iscrowd 2": (first("annotations", iscrowd=2), "`iscrowd` must be 0 or 1, got int 2"),
    "ignore 1": (first("annotations", ignore=1), "`ignore` is not supported; leave the object out"),
    "image that is not there": (
        every("annotations", image_id=8), "image 8 is not in `images`, nor is that of 2 more"),
    "category that is not there": (
        every("annotations", category_id=8), "category 8 is not in `categories`, nor is"),
    "text category id in the list": (
        turn("categories", "id", str), r"categories\[0\] must have an integer id and a name"),
    "category without a name": (first("categories", name=GONE), r"categories\[0\] must have"),
    "category without an id": (first("categories", id=GONE), r"categories\[0\] must have"),
    "categories by name": (top(categories={"cat": 5}), "`categories` must be a list, got dict"),
    "category id given twice": (first("categories", id=6), "category id 6 is given twice"),
    "no categories": (top(categories=[]), "the list `categories` is empty"),
    "no list of categories": (top(categories=GONE), "there is no list `categories`"),
    "no list of annotations": (top(annotations=GONE), "there is no list `annotations`"),
    "null annotations": (top(annotations=None), "`annotations` must be a list, got nothing"),
    "another format": (
        lambda d: (d.clear(), d.update(shapes=[], imagePath="b.png")), "the file holds `shapes`"),
    "all crowds": (every("annotations", iscrowd=1), "nothing remains: all 3 objects are crowds"),
    "boxes without extent": (
        every("annotations", bbox=[0, 0, 0, 0]), "nothing remains: 3 boxes have no extent"),
    "boxes outside": (every("annotations", bbox=[90, 0, 9, 9]), "3 boxes have no extent in their"),
    "crowds and no extent": (
        both(every("annotations", bbox=[0, 0, 9, 0]), first("annotations", iscrowd=1)),
        "nothing remains: 1 of 3 objects are crowds, and 2 boxes have no extent"),
    "boxes as shares, YOLO": (
        every("annotations", bbox=[0.1, 0.25, 0.5, 1]), "all boxes lie between 0 and 1"),
    "name that leads out": (
        first("images", file_name="..\\..\\b.png"), "image 7: file_name .* leads out of the image"),
    "name with a drive": (first("images", file_name="C:\\b.png"), "leads out of the image root"),
    "absolute name elsewhere": (
        first("images", file_name="/etc/passwd"), "image 7: file_name '/etc/passwd' leads out"),
}  # fmt: skip

# Errors where several elements are wrong by themselves.
COUNTS = {"text image ids": 3, "image ids given twice": 2, "text category id in the list": 2}

# Edit -> words of each warning that it gives.
WARNED: dict[str, tuple[Edit, list[str]]] = {
    "an object without extent": (
        first("annotations", bbox=[0, 0, 0, 0]), [r"b\.png: annotation 1: box .* has no area"]),
    "boxes that leave the image": (
        every("annotations", bbox=[1, 1, 40, 9]), ["annotation 1: .*11 pixels out .*2 more boxes"]),
    "a root class, Roboflow": (
        lambda d: d["categories"].insert(0, {"id": 0, "name": "pets", "supercategory": "none"}),
        ["1 of 3 categories have no object, yet are classes: 0 'pets'"]),
    "two classes of one name": (
        every("categories", name="cat"), ["2 categories are named 'cat', and are 2 classes: 5, 6"]),
    "no object at all": (top(annotations=[]), ["2 of 2 categories have no object"]),
}  # fmt: skip


@pytest.fixture
def report(tmp_path: Path) -> Callable[[Edit], tuple[Path, Report]]:
    """Write the edited document, and check it."""
    root = tmp_path / "images"
    write_images(root, coco_document())

    def run(edit: Edit) -> tuple[Path, Report]:
        document = copy.deepcopy(coco_document())
        edit(document)
        path = tmp_path / "set.json"
        path.write_text(json.dumps(document))
        return path, examine(path, root, workers=1)

    return run


def as_coco_writes_it(document: Document) -> None:
    for element in document["annotations"]:
        _, _, width, height = element["bbox"]
        element.update(area=width * height, segmentation=[[0, 0, 9, 0, 9, 9]])
    document["licenses"] = []


def everything(path: Path) -> tuple[Any, ...]:
    """What the commands get of a file."""
    annotations = load_annotations(path)
    found = dataset_dicts(annotations, path.parent / "images")
    return found, coco_ground_truth(annotations), dataset_fingerprint(annotations.images)


@pytest.mark.parametrize("edit", FILLED_IN.values(), ids=FILLED_IN)
def test_what_has_one_meaning_is_filled_in(
    edit: Edit, report: Callable[[Edit], tuple[Path, Report]]
) -> None:
    path, _ = report(as_coco_writes_it)
    expected = everything(path)
    path, found = report(both(as_coco_writes_it, edit))
    assert found.problems == []
    assert everything(path) == expected


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_is_one_error_in_the_words_of_the_check(
    name: str, report: Callable[[Edit], tuple[Path, Report]]
) -> None:
    edit, words = REFUSED[name]
    # Elements with all that COCO writes are looked at together, others one by one.
    for form in (list, as_coco_writes_it):
        path, found = report(both(form, edit))
        errors = [problem for problem in found.problems if problem.severity == "error"]
        assert len(errors) == COUNTS.get(name, 1)
        assert re.search(words, errors[0].sentence), errors
        with pytest.raises(ValueError) as caught:
            load_annotations(path, path.parent / "images")
        assert str(caught.value).startswith(f"{path}: {errors[0].sentence}")


@pytest.mark.parametrize(("edit", "words"), WARNED.values(), ids=WARNED)
def test_what_is_warned_of_is_one_line_a_kind(
    edit: Edit, words: list[str], report: Callable[[Edit], tuple[Path, Report]]
) -> None:
    path, found = report(edit)
    assert found.count("error") == 0 and found.count("warning") >= len(words)
    lines = load_annotations(path).warnings()
    assert len(lines) == len(words)
    for line, pattern in zip(lines, words, strict=True):
        assert line.startswith(f"{path}: ") and re.search(pattern, line)


def test_a_byte_order_mark_changes_nothing(report: Callable[[Edit], tuple[Path, Report]]) -> None:
    path, _ = report(lambda document: None)
    expected = everything(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert everything(path) == expected


def test_repeated_ids_are_known_of_coco_2014s_minival(tmp_path: Path) -> None:
    document = coco_document()
    document["annotations"][1]["id"] = 1
    path = tmp_path / "instances_valminusminival2014.json"
    path.write_text(json.dumps(document))
    assert "annotation id 1 is given twice" in load_annotations(path).warnings()[0]


def test_detectron2s_own_loader_gives_the_same_dicts(tmp_path: Path) -> None:
    from detectron2.data import MetadataCatalog
    from detectron2.data.datasets import load_coco_json

    document = coco_document()
    document["categories"].reverse()
    path = tmp_path / "set.json"
    path.write_text(json.dumps(document))
    root = tmp_path / "images"
    write_images(root, document)
    expected = load_coco_json(str(path), str(root), "test_reading")
    MetadataCatalog.remove("test_reading")
    assert dataset_dicts(load_annotations(path), root) == expected


def test_objects_written_as_cocos_are_taken_as_if_each_were_parsed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(4)
    document = coco_document()
    document["annotations"] = [
        {
            "id": number,
            "image_id": int(generator.choice([3, 7, 9])),
            "category_id": int(generator.choice([5, 6])),
            "bbox": generator.uniform(0, 9, 4).round(2).tolist(),
            "area": float(generator.uniform(0, 50)),
            "iscrowd": int(generator.random() < 0.1),
            "segmentation": [[1, 2, 3, 4, 5, 6]],
        }
        for number in range(700)
    ]
    path = tmp_path / "set.json"
    path.write_text(json.dumps(document))
    quick = load_annotations(path).objects
    monkeypatch.setattr(objects_module, "_usual_columns", lambda elements, numbers: None)
    slow = load_annotations(path).objects
    assert len(quick) == 700
    for name, column in vars(quick).items():
        other = vars(slow)[name]
        assert column.dtype == other.dtype and np.array_equal(column, other), name


def test_a_settled_file_is_read_once_and_a_changed_one_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "set.json"
    document = coco_document()

    def write(age_sec: float) -> None:
        path.write_text(json.dumps(document))
        then = time.time() - age_sec
        os.utime(path, (then, then))

    write(age_sec=60)
    assert read_annotations(path) is read_annotations(str(path))
    document["images"][0]["width"] = 31
    write(age_sec=50)
    changed = read_annotations(path)
    assert changed.images.widths.tolist() == [16, 31, 10]
    # One that was written just now may be written again within a tick of the file system's clock.
    write(age_sec=0)
    assert read_annotations(path) is not read_annotations(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match="there is no such annotation file"):
        read_annotations(path)
    assert len(reading._memory) <= 4
