"""The images of a list, or the first ones, those that are left out, and lists that are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.nodes import DatasetConfig
from dataset.reading import load_annotations
from dataset.sets import DataSet
from dataset.subset import chosen_images, excluded_ids, read_image_list

Writer = Callable[[Any], Path]


def set_of(path: Path) -> DataSet:
    annotations = load_annotations(path)
    return DataSet(
        name="a", path=str(path), image_root="", annotations=annotations, images=annotations.images
    )


@pytest.fixture
def write_list(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "images.txt"
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
        return path

    return write


@pytest.mark.parametrize(
    ("text", "limit", "names"),
    [
        ("9\n3\n", 0, ["a.png", "sub/c.png"]),
        ("# those with cats\n\n 9 # a comment\r\n9\n", 0, ["sub/c.png"]),
        ("9\n7", 1, ["b.png"]),  # the first of the list, by id
        ("9\n7", 5, ["b.png", "sub/c.png"]),
        ("\ufeff9\r\n7\r\n", 5, ["b.png", "sub/c.png"]),  # as Windows writes it
    ],
)
def test_the_listed_images_are_kept_by_id(
    write_json: Writer,
    document: dict[str, Any],
    write_list: Callable[[str], Path],
    text: str,
    limit: int,
    names: list[str],
) -> None:
    one = set_of(write_json(document))
    whole = one.images
    config = DatasetConfig(image_list=str(write_list(text)), max_images=limit)
    (chosen,) = chosen_images([one], config)
    table = chosen.images
    assert table.file_names == names
    rows = np.searchsorted(whole.ids, table.ids)
    assert whole.ids[rows].tolist() == table.ids.tolist()
    assert whole.heights[rows].tolist() == table.heights.tolist()
    assert whole.widths[rows].tolist() == table.widths.tolist()


def test_excluded_images_stay_among_the_chosen_ones(
    write_json: Writer, document: dict[str, Any], write_list: Callable[[str], Path]
) -> None:
    one = set_of(write_json(document))
    config = DatasetConfig(exclude=str(write_list("9  # b.png: cut\n7\n9\n")))
    (chosen,) = chosen_images([one], config)
    assert chosen.images.ids.tolist() == one.images.ids.tolist() == [3, 7, 9]
    excluded = excluded_ids([one], config)
    assert excluded.tolist() == [7, 9]
    assert one.images.without(excluded).file_names == ["a.png"]
    assert excluded_ids([one], DatasetConfig()).tolist() == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no image"),
        ("# nothing\n", "names no image"),
        ("3\na.png\n", r"images\.txt:2: expected one image id, got 'a\.png'"),
        ("3 7\n", r"images\.txt:1: expected one image id, got '3 7'"),
        (f"{2**64}\n", "an id beyond 64 bits"),
        ("\udcff", "is not a text file"),
    ],
)
@pytest.mark.parametrize("key", ["DATASET.IMAGE_LIST", "DATASET.EXCLUDE"])
def test_a_list_that_holds_something_else_is_refused(
    write_list: Callable[[str], Path], key: str, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{key}: .*{message}"):
        read_image_list(key, write_list(text))


@pytest.mark.parametrize("key", ["IMAGE_LIST", "EXCLUDE"])
def test_ids_that_the_annotations_lack_are_counted_and_named(
    write_json: Writer, document: dict[str, Any], write_list: Callable[[str], Path], key: str
) -> None:
    one, listed = set_of(write_json(document)), str(write_list("3\n12\n11\n"))
    config = DatasetConfig(**{key.lower(): listed})
    said = rf"^DATASET\.{key}: .* names 2 images that are not in .*, the first has the id 11$"
    with pytest.raises(ValueError, match=said):
        (chosen_images if key == "IMAGE_LIST" else excluded_ids)([one], config)


def test_a_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"EXCLUDE: there is no file .*none\.txt"):
        read_image_list("DATASET.EXCLUDE", tmp_path / "none.txt")
    with pytest.raises(ValueError, match="is not a text file"):
        read_image_list("DATASET.EXCLUDE", tmp_path)
