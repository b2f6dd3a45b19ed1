"""The check: every kind of problem is found, named and weighed."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dataset.checking import Problem, Report, examine
from tests.dataset.conftest import write_images

Writer = Callable[[Any], Path]


@pytest.fixture
def root(tmp_path: Path, document: dict[str, Any]) -> Path:
    write_images(tmp_path / "images", document)
    return tmp_path / "images"


def one_problem(problems: list[Problem]) -> Problem:
    assert len(problems) == 1, problems
    return problems[0]


def test_a_sound_dataset_has_no_problems(
    root: Path, write_json: Writer, document: dict[str, Any]
) -> None:
    report = examine(write_json(document), root)
    assert report.problems == []
    assert (report.images, report.objects, report.categories) == (3, 3, 2)
    assert report.images_without_objects == 1


@pytest.mark.parametrize(
    ("change", "kind", "severity", "message"),
    [
        ({"bbox": [2, 3, -1, 5]}, "box", "error", "has a negative size"),
        ({"bbox": [2, 3, 30, 5]}, "box", "warning", "reaches 2 pixels out of the 20x30 image"),
        ({"bbox": [-5, 3, 9, 5]}, "box", "warning", "reaches 5 pixels out"),
        ({"bbox": [2, 19, 9, 5.5]}, "box", "warning", "reaches 4.5 pixels out"),
        ({"bbox": [2, 3, 28.4, 5]}, "box", "warning", "reaches 0.4 pixels out .* clips it"),
        ({"bbox": [2, 3, 0, 5]}, "box", "warning", "has no area; training drops it"),
        ({"bbox": [2, 3, 1]}, "box", "error", "`bbox` must be 4 numbers"),
        ({"bbox": [2, 3, 1, "4"]}, "box", "error", "`bbox` must be 4 numbers"),
        ({"bbox": [2, 3, 1, float("nan")]}, "box", "error", "`bbox` must be 4 numbers"),
        ({"bbox": None}, "box", "error", "`bbox` must be 4 numbers, got None"),
        ({"category_id": 77}, "category", "error", "category 77 is not in `categories`"),
        ({"id": 2}, "duplicate", "error", "annotation id 2 is given twice"),
        ({"image_id": 77}, "annotation", "error", "image 77 is not in `images`"),
        ({"image_id": "7"}, "annotation", "error", "`image_id` must be an integer, got str '7'"),
        ({"ignore": 1}, "annotation", "error", "`ignore` is not supported"),
        ({"bbox": [40, 3, 9, 5]}, "box", "warning", "lies outside of the 20x30 image .* drops it"),
    ],
)
def test_a_bad_object_is_named_with_its_image(
    root: Path,
    write_json: Writer,
    document: dict[str, Any],
    change: dict[str, Any],
    kind: str,
    severity: str,
    message: str,
) -> None:
    document["annotations"][0].update(change)
    problem = one_problem(examine(write_json(document), root).problems)
    assert (problem.kind, problem.severity) == (kind, severity)
    assert re.search(message, problem.message)
    image_id = document["annotations"][0]["image_id"]
    assert problem.image in ("b.png", f"image {image_id}")


@pytest.mark.parametrize("bbox", [[0, 0, 30.0004, 20], [0, 0, 30, 20], [29, 19, 1, 1]])
def test_boxes_up_to_the_border_are_no_problem(
    root: Path, write_json: Writer, document: dict[str, Any], bbox: list[float]
) -> None:
    document["annotations"][0]["bbox"] = bbox
    assert examine(write_json(document), root).problems == []


@pytest.mark.parametrize(
    ("change", "kind", "image", "message"),
    [
        ({"width": 31}, "size", "b.png", r"expected 20x31 pixels .* found 20x30"),
        ({"file_name": "x.png"}, "missing", "x.png", r"there is no .*x\.png"),
        ({"file_name": "../b.png"}, "image", "../b.png", "image 7: .* leads out of the image root"),
        ({"id": 3}, "duplicate", "a.png", r"image id 3 is also that of b\.png"),
        ({"height": 0}, "image", "b.png", r"image 7: `height` must lie in"),
        ({"file_name": 5}, "image", "images[0]", "image 7: `file_name` must be a name"),
    ],
)
def test_a_bad_image_is_named(
    root: Path,
    write_json: Writer,
    document: dict[str, Any],
    change: dict[str, Any],
    kind: str,
    image: str,
    message: str,
) -> None:
    document["annotations"] = document["annotations"][2:]  # not of this image
    document["categories"] = document["categories"][:1]
    document["images"][0].update(change)
    problem = one_problem(examine(write_json(document), root).problems)
    assert (problem.kind, problem.image, problem.severity) == (kind, image, "error")
    assert re.search(message, problem.message)


@pytest.mark.parametrize("damage", [b"", b"no image"])
def test_an_unreadable_image_is_named(
    root: Path, write_json: Writer, document: dict[str, Any], damage: bytes
) -> None:
    (root / "b.png").write_bytes(damage)
    problem = one_problem(examine(write_json(document), root).problems)
    assert (problem.kind, problem.image) == ("unreadable", "b.png")


def test_a_pipe_and_an_image_of_16_bit_are_named(
    root: Path, write_json: Writer, document: dict[str, Any]
) -> None:
    (root / "a.png").unlink()
    os.mkfifo(root / "a.png")
    Image.fromarray(np.zeros((20, 30), np.uint16)).save(root / "b.png")
    pipe, deep = examine(write_json(document), root).problems
    assert (pipe.image, pipe.kind) == ("a.png", "unreadable")
    assert pipe.message.startswith("is no regular file")
    assert (deep.image, deep.kind) == ("b.png", "depth")
    assert deep.message.endswith("convert to 8 bit")


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_truncated_image_is_named(
    root: Path, write_json: Writer, document: dict[str, Any], suffix: str
) -> None:
    image = document["images"][0]
    image.update(file_name=f"big.{suffix}", width=400, height=300)
    write_images(root, {"images": [image]})
    whole = (root / image["file_name"]).read_bytes()
    assert examine(write_json(document), root).problems == []
    (root / image["file_name"]).write_bytes(whole[: len(whole) * 9 // 10])
    assert one_problem(examine(write_json(document), root).problems).kind == "unreadable"


def test_sizes_count_after_exif_rotation(
    root: Path, write_json: Writer, document: dict[str, Any]
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 8
    Image.new("RGB", (20, 30)).save(root / "b.png", exif=exif)
    assert examine(write_json(document), root).problems == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "there is no list `images`"),
        ({"annotations": None}, "there is no list `annotations`"),
        ({"categories": None}, "there is no list `categories`"),
        ({"categories": []}, "`categories` is empty"),
        ({"categories": {}}, "`categories` must be a list, got dict"),
        ({"categories": [{"id": 5}, {"id": 6, "name": "x"}]}, r"categories\[0\] must have"),
        ({"categories": [3]}, r"categories\[0\] must have an integer id and a name"),
        ({"annotations": [3]}, r"annotations\[0\] must be an object"),
        ({"images": [3]}, r"images\[0\] must be an object, got int 3"),
    ],
)
def test_sections_that_are_not_coco_are_problems(
    root: Path,
    write_json: Writer,
    document: dict[str, Any],
    change: dict[str, Any],
    message: str,
) -> None:
    document.update(change)
    document = {name: value for name, value in document.items() if value is not None}
    problems = examine(write_json(document), root).problems
    assert any(re.search(message, problem.message) for problem in problems)


@pytest.mark.parametrize("labels", [{}, {"annotations": [], "categories": []}])
def test_a_set_without_labels_is_checked_as_that(
    root: Path, write_json: Writer, document: dict[str, Any], labels: dict[str, Any]
) -> None:
    path = write_json({"images": document["images"], **labels})
    (root / "a.png").unlink()
    unlabelled, missing = examine(path, root).problems
    assert (unlabelled.severity, unlabelled.kind) == ("warning", "labels")
    assert unlabelled.message.endswith("DATASETS.UNLABELED alone takes such a set")
    assert (missing.severity, missing.kind, missing.image) == ("error", "missing", "a.png")


def test_lists_by_other_names_are_told_of(
    root: Path, write_json: Writer, document: dict[str, Any]
) -> None:
    content = {"images": document["images"], "annotation": [], "category": []}
    problem = one_problem(examine(write_json(content), root).problems)
    assert "there is no list `annotations` and no list `categories`" in problem.message
    assert "the file holds `images`, `annotation`, `category`" in problem.message


@pytest.mark.parametrize("section", ["annotations", "categories"])
def test_labels_that_are_no_lists_are_an_error(
    root: Path, write_json: Writer, document: dict[str, Any], section: str
) -> None:
    content = {"images": document["images"], "annotations": [], "categories": [], section: {}}
    messages = [str(one) for one in examine(write_json(content), root).problems]
    assert any(one.startswith(f"error: `{section}` must be a list") for one in messages)
    assert not any("DATASETS.UNLABELED" in one for one in messages)


def test_too_little_memory_is_no_fault_of_an_image(
    root: Path, write_json: Writer, document: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lacking(path: str, size: tuple[int, int]) -> None:
        raise OSError(f"{path}: there is not enough memory to read it")

    monkeypatch.setattr("dataset.checking.examine_image", lacking)
    with pytest.raises(OSError, match="not enough memory"):
        examine(write_json(document), root, workers=1)


def test_category_ids_given_twice_are_a_problem(
    root: Path, write_json: Writer, document: dict[str, Any]
) -> None:
    document["categories"].append({"id": 6, "name": "cow"})
    problem = one_problem(examine(write_json(document), root).problems)
    assert problem.message == "category id 6 is given twice; give each an id of its own"


def test_sections_may_come_in_any_order(
    root: Path, write_json: Writer, document: dict[str, Any]
) -> None:
    assert examine(write_json(dict(reversed(document.items()))), root).problems == []


def test_several_processes_find_the_same(
    root: Path, write_json: Writer, document: dict[str, Any]
) -> None:
    (root / "b.png").write_bytes(b"")
    (root / "a.png").unlink()
    path = write_json(document)
    found = examine(path, root, workers=2).problems
    assert [problem.kind for problem in found] == ["missing", "unreadable"]
    assert found == examine(path, root, workers=1).problems


def test_what_cannot_be_read_at_all_is_an_error(tmp_path: Path, write_json: Writer) -> None:
    with pytest.raises(FileNotFoundError, match="there is no such image folder"):
        examine(write_json({}), tmp_path / "gone")
    with pytest.raises(ValueError, match="not valid JSON"):
        examine(write_json("{"), tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no such annotation file"):
        examine(tmp_path / "gone.json", tmp_path)


def test_lines_put_errors_first_and_count_the_rest() -> None:
    problems = [Problem("a.png", "box", f"w{n}", "warning") for n in range(3)]
    problems.append(Problem("b.png", "size", "e"))
    report = Report(problems=problems, images=2, objects=5, categories=1, images_without_objects=0)
    lines = list(report.lines(2))
    assert lines[:3] == ["error: b.png: e", "warning: a.png: w0", "and 2 more problems"]
    assert lines[3].endswith("5 objects, 1 categories: 1 errors, 3 warnings")
    assert json.loads(json.dumps(report.to_json()))["problems"][0]["message"] == "w0"
