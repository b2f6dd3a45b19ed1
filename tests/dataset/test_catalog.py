"""Data sets that a function gives are brought into COCO's form, and checked as files are."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import BoxMode
from PIL import Image

from dataset.registry import adopt, is_coco, locate

NAME = "test_function"
Register = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def register(tmp_path: Path) -> Iterator[Register]:
    """Register a set of two images, edited; metadata by keyword."""
    (tmp_path / "a").mkdir()
    for name in ("a/1.png", "2.png"):
        Image.fromarray(np.zeros((30, 40, 3), dtype=np.uint8)).save(tmp_path / name)

    def write(edit: Callable[[list[Any]], Any] = list, **metadata: Any) -> list[dict[str, Any]]:
        box = {"bbox_mode": BoxMode.XYXY_ABS, "bbox": np.array([2.0, 3.0, 12.0, 8.0])}
        size = {"height": 30, "width": np.int64(40)}
        images: list[dict[str, Any]] = [
            {
                "file_name": tmp_path / "a" / "1.png",
                "image_id": 7,
                **size,
                "annotations": [{**box, "category_id": 1, "segmentation": []}],
            },
            {"file_name": str(tmp_path / "2.png"), "image_id": 3, **size},
        ]
        edit(images)
        DatasetCatalog.register(NAME, lambda: images)
        MetadataCatalog.get(NAME).set(**{"thing_classes": ["cat", "dog"], **metadata})
        return images

    yield write
    for catalog in (DatasetCatalog, MetadataCatalog):
        if NAME in catalog:
            catalog.remove(NAME)


def test_a_function_s_images_are_read_as_those_of_a_file(
    register: Register, tmp_path: Path
) -> None:
    register()
    assert is_coco(NAME)
    annotations = adopt(NAME)
    assert annotations.images.ids.tolist() == [3, 7]
    assert list(annotations.images.file_names) == ["2.png", "a/1.png"]
    assert annotations.categories == {0: "cat", 1: "dog"}
    assert locate(NAME)[1] == str(tmp_path)
    empty, full = DatasetCatalog.get(NAME)
    assert full["file_name"] == str(tmp_path / "a" / "1.png")
    (found,) = full["annotations"]
    assert found["bbox"] == [2, 3, 10, 5]
    assert found["bbox_mode"] == BoxMode.XYWH_ABS
    assert found["category_id"] == 1
    assert empty["annotations"] == []
    adopt(NAME)


def test_the_metadata_give_the_root_and_the_ids(register: Register, tmp_path: Path) -> None:
    register(image_root=str(tmp_path.parent), thing_dataset_id_to_contiguous_id={4: 0, 9: 1})
    annotations = adopt(NAME)
    assert annotations.categories == {4: "cat", 9: "dog"}
    assert annotations.images.file_names[0] == f"{tmp_path.name}/2.png"


@pytest.mark.parametrize(
    "edit",
    [
        lambda root: {"image_root": os.path.relpath(root)},
        lambda root: {"image_root": f"{root}/"},
        lambda root: {"image_root": root},
        lambda root: {"json_file": "", "evaluator_type": None},
    ],
)
def test_metadata_may_be_written_in_other_ways(
    register: Register, tmp_path: Path, edit: Callable[[Path], dict[str, Any]]
) -> None:
    register(**edit(tmp_path), thing_colors=[(0, 0, 0), (9, 9, 9)])
    for _ in range(2):
        assert list(adopt(NAME).images.file_names) == ["2.png", "a/1.png"]
        assert locate(NAME)[1] == str(tmp_path)
        assert MetadataCatalog.get(NAME).thing_colors == [(0, 0, 0), (9, 9, 9)]


def test_a_root_that_is_not_there_is_named(register: Register, tmp_path: Path) -> None:
    register(image_root=str(tmp_path / "gone"))
    with pytest.raises(
        FileNotFoundError, match=f"'{NAME}': its images lie in .*/gone, which is no"
    ):
        adopt(NAME)


def test_an_image_outside_of_the_stated_root_is_refused(register: Register, tmp_path: Path) -> None:
    register(image_root=str(tmp_path / "a"))
    with pytest.raises(
        ValueError, match=rf"^dataset '{NAME}': .*2\.png: image 3: .* leads out of the im"
    ):
        adopt(NAME)


def test_another_evaluator_s_set_is_left_alone(register: Register) -> None:
    register(evaluator_type="pascal_voc")
    assert not is_coco(NAME)
    with pytest.raises(ValueError, match="is not a COCO detection dataset: it needs"):
        locate(NAME)


def of_first(**values: Any) -> Callable[[list[Any]], Any]:
    return lambda images: images[0].update(values)


def of_object(**values: Any) -> Callable[[list[Any]], Any]:
    return lambda images: images[0]["annotations"][0].update(values)


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (of_first(image_id=3), r"image id 3 is also that of"),
        (of_first(image_id="one"), r"`id` must be .*'one'|`id` .* \"one\""),
        (of_first(image_id=None), r"1\.png has no `image_id`; expected \{"),
        (of_first(height=None), r"1\.png has no `height`"),
        (of_first(file_name=""), r"its element 0 has no `file_name`"),
        (of_first(annotations=[3]), r"1\.png: an annotation is 3; expected a dict"),
        (of_object(bbox_mode=BoxMode.XYWHA_ABS), r"`bbox_mode` is <BoxMode\.XYWHA_ABS: 4>"),
        (of_object(bbox_mode=None), r"`bbox_mode` is None; expected BoxMode\.XYXY_ABS or"),
        (of_object(category_id=2), r"`category_id` is 2; expected the number of one of the 2"),
        (of_object(bbox=[1, 2, 3]), r"annotation 1: `bbox` must be 4 numbers"),
        (of_object(bbox=[9, 2, 3, 4]), r"has a negative size"),
        (of_object(bbox=["a", 2, 3, 4]), r"1\.png: `bbox` is "),
        (of_object(iscrowd=object()), r"<object object .*> is no number and no text"),
        (lambda images: images.clear(), r"`images` is empty"),
        (lambda images: images.insert(0, 5), r"its element 0 has no `file_name`"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused_by_the_name_of_the_set(
    register: Register, edit: Callable[[list[Any]], Any], expected: str
) -> None:
    register(edit)
    with pytest.raises(ValueError, match=rf"^dataset '{NAME}': .*(?:{expected})") as error:
        adopt(NAME)
    assert "dataset check" not in str(error.value)


@pytest.mark.parametrize(
    ("function", "classes", "expected"),
    [
        (lambda: 1 / 0, ["a"], r"its function fails: ZeroDivisionError: .*/test_catalog\.py:\d+"),
        (lambda: 3, ["a"], "its function gives int; expected a list of"),
        (list, [], r"its metadata lack the names of its classes; add MetadataCatalog\.get"),
    ],
)  # fmt: skip
def test_a_function_that_gives_no_images_is_refused(
    register: Register, function: Callable[[], Any], classes: list[str], expected: str
) -> None:
    register(thing_classes=classes)
    DatasetCatalog.remove(NAME)
    DatasetCatalog.register(NAME, function)
    with pytest.raises(ValueError, match=f"^dataset '{NAME}': {expected}"):
        adopt(NAME)


# A rank that another process started, and what it leaves behind.
_RANK = """
from multiprocessing import get_context
from detectron2.data import DatasetCatalog, MetadataCatalog
from dataset.catalog import is_written, write_coco

def rank():
    write_coco("mine")
    assert is_written(MetadataCatalog.get("mine").json_file)

DatasetCatalog.register("mine", list)
MetadataCatalog.get("mine").set(thing_classes=["cat"], image_root=".")
process = get_context("fork").Process(target=rank)
process.start()
process.join()
raise SystemExit(process.exitcode)
"""


def test_the_file_is_gone_with_a_process_that_another_one_started(tmp_path: Path) -> None:
    environment = os.environ | {"TMPDIR": str(tmp_path), "PYTHONPATH": os.getcwd()}
    subprocess.run([sys.executable, "-c", _RANK], env=environment, check=True)
    assert not [*tmp_path.iterdir()]
