"""What a config wants of a cache, compared with what the cache says of itself."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from configs.nodes import ViewsConfig
from dataset.tables import ImageTable
from dataset.views import Augmentation
from detectors.identity import changed_images, other_dataset
from stage1_dump.plan import PlanConfig, make_plan
from storage import Index

VIEWS = ViewsConfig(seed=3, num=2, scales=(64, 96), max_size=160)
AUGMENTATION = Augmentation.of_config(VIEWS)
COUNT = 9


def table(**changes: Any) -> ImageTable:
    """Nine images with ids 10, 20, ..., 90, 100 pixels high and 101 to 109 wide."""
    columns = {
        "ids": np.arange(1, COUNT + 1) * 10,
        "file_names": [f"{number}.png" for number in range(1, COUNT + 1)],
        "heights": np.full(COUNT, 100, np.int32),
        "widths": 100 + np.arange(1, COUNT + 1, dtype=np.int32),
    }
    return ImageTable(**{**columns, **changes})


@pytest.fixture
def index() -> Index:
    """The plan of `table()`."""
    return make_plan(table(), PlanConfig(views=VIEWS, size_divisibility=32, shard_records=4))


def test_any_of_the_images_may_be_used_with_any_number_of_the_views(index: Index) -> None:
    for rows in ([0], [3, 7], list(range(COUNT))):
        for num in (1, 2, 3):
            some = table().rows(np.array(rows))
            assert changed_images(index, some, AUGMENTATION, num) == []


def test_new_images_are_counted_and_the_first_are_named(index: Index) -> None:
    ids = table().ids.copy()
    ids[4:] += 1
    (said,) = changed_images(index, table(ids=ids), AUGMENTATION)
    assert said == "5 images are new: 51 (5.png), 61 (6.png), 71 (7.png), and 2 more"
    gone, new = other_dataset(index, table(ids=ids), AUGMENTATION)
    assert gone == "5 images are gone: 50, 60, 70, and 2 more" and new == said


def test_an_image_is_new_if_one_view_in_use_lacks_it(index: Index) -> None:
    for view, found in ((0, ["1 images are new: 30 (3.png)"]), (1, [])):
        lacking = (index.image_id == 30) & (index.view == view)
        other = replace(index, image_id=np.where(lacking, 31, index.image_id))
        assert changed_images(other, table(), AUGMENTATION) == ["1 images are new: 30 (3.png)"]
        assert changed_images(other, table(), AUGMENTATION, 1) == found


def test_another_size_is_named_with_both_sizes_of_a_view(index: Index) -> None:
    widths = table().widths.copy()
    widths[[1, 5]] += 20
    (said,) = changed_images(index, table(widths=widths), AUGMENTATION)
    record = int(np.flatnonzero(index.image_id == 20)[0])
    before = f"{index.width[record]} x {index.height[record]}"
    assert said.startswith("2 images have another size: 20 (2.png), whose view 0 was ")
    assert f"was {before} pixels and would now be " in said and ", 60 (6.png), whose" in said
    assert said.count("whose view") == 2


@pytest.mark.parametrize("column", ["seed", "height", "width"])
def test_every_view_in_use_is_compared(index: Index, column: str) -> None:
    """A change of one number of view 1 is found, and not looked for where view 0 is used alone."""
    values = getattr(index, column).copy()
    values[index.view == 1] += 1
    other = replace(index, **{column: values})
    (said,) = changed_images(other, table(), AUGMENTATION)
    assert said.startswith(f"{COUNT} images have another size: 10 (1.png), whose view 1 ")
    assert changed_images(other, table(), AUGMENTATION, 1) == []


def test_a_dataset_of_other_file_names_is_told_as_such(index: Index) -> None:
    renamed = table(file_names=["x.png"] * COUNT)
    assert changed_images(index, renamed, AUGMENTATION) == []
    assert "file names changed" in other_dataset(index, renamed, AUGMENTATION)[0]
