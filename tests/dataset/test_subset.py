"""The images of a list, or the first ones: what is kept, and lists that are refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.nodes import DatasetConfig
from dataset.subset import planned_images, read_image_list

Writer = Callable[[Any], Path]


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
    config = DatasetConfig(image_list=str(write_list(text)), max_images=limit)
    table = planned_images(write_json(document), config)
    assert table.file_names == names
    whole = planned_images(write_json(document), DatasetConfig())
    rows = np.searchsorted(whole.ids, table.ids)
    assert whole.ids[rows].tolist() == table.ids.tolist()
    assert whole.heights[rows].tolist() == table.heights.tolist()
    assert whole.widths[rows].tolist() == table.widths.tolist()


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
def test_a_list_that_holds_something_else_is_refused(
    write_list: Callable[[str], Path], text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=rf"DATASET\.IMAGE_LIST: .*{message}"):
        read_image_list(write_list(text))


def test_ids_that_the_annotations_lack_are_counted_and_named(
    write_json: Writer, document: dict[str, Any], write_list: Callable[[str], Path]
) -> None:
    config = DatasetConfig(image_list=str(write_list("3\n12\n11\n")))
    with pytest.raises(ValueError, match=r"names 2 images that are not in .*, the first has .* 11"):
        planned_images(write_json(document), config)


def test_a_list_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"IMAGE_LIST: there is no file .*none\.txt"):
        read_image_list(tmp_path / "none.txt")
    with pytest.raises(ValueError, match="is not a text file"):
        read_image_list(tmp_path)
