"""The plan: pure, view-major, and refused where views could not be the same twice."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from configs.nodes import ViewsConfig
from dataset.tables import ImageTable
from dataset.views import Augmentation, plan_view
from stage1_dump.plan import PlanConfig, bucket_size, make_plan
from storage import Index
from storage.index import COLUMNS
from storage.schema import MAX_RECORDS

MIXED = ViewsConfig(seed=3, num=3, scales=(40, 64, 100), max_size=150)


def table(num_images: int, seed: int = 0) -> ImageTable:
    generator = np.random.default_rng(seed)
    sizes = generator.integers(30, 200, (2, num_images), dtype=np.int32)
    ids = np.sort(generator.choice(10**6, num_images, replace=False)).astype(np.int64)
    names = [f"{image_id}.png" for image_id in ids]
    return ImageTable(ids=ids, file_names=names, heights=sizes[0], widths=sizes[1])


def plan(images: ImageTable, views: ViewsConfig = MIXED, shard_records: int = 4) -> Index:
    config = PlanConfig(views=views, size_divisibility=32, shard_records=shard_records)
    return make_plan(images, config)


def columns(index: Index) -> dict[str, np.ndarray]:
    return {name: getattr(index, name) for name in COLUMNS}


def test_every_image_has_every_view_once() -> None:
    images = table(50)
    index = plan(images)
    expected = {(int(image), view) for image in images.ids for view in range(3)}
    assert set(zip(index.image_id.tolist(), index.view.tolist(), strict=True)) == expected
    assert len(index) == len(expected)


def test_the_same_annotations_give_the_same_plan() -> None:
    first, second = plan(table(40)), plan(table(40))
    assert first.bucket_names == second.bucket_names
    assert first.digest() == second.digest()


def test_records_have_the_views_that_rendering_will_use() -> None:
    images = table(20)
    index = plan(images)
    for record in range(len(index)):
        row = int(np.searchsorted(images.ids, index.image_id[record]))
        view = plan_view(
            Augmentation.of_config(MIXED),
            image_id=int(images.ids[row]),
            view=int(index.view[record]),
            height=int(images.heights[row]),
            width=int(images.widths[row]),
        )
        assert (view.height, view.width) == (index.height[record], index.width[record])
        assert view.seed == index.seed[record]


def test_a_bucket_is_the_size_of_its_views_padded() -> None:
    index = plan(table(60))
    for record in range(len(index)):
        height, width = bucket_size(index.bucket_names[index.bucket[record]])
        assert 0 <= height - index.height[record] < 32 and height % 32 == 0
        assert 0 <= width - index.width[record] < 32 and width % 32 == 0


def test_the_order_is_view_then_bucket_then_image() -> None:
    index = plan(table(60))
    assert np.all(np.diff(index.view) >= 0)
    for view in range(3):
        sizes = [index.bucket_names[number] for number in index.bucket[index.view == view]]
        keys = list(zip(sizes, index.image_id[index.view == view].tolist(), strict=True))
        assert keys == sorted(keys)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 40), st.integers(1, 7), st.integers(0, 5))
def test_no_shard_spans_two_views(num_images: int, shard_records: int, seed: int) -> None:
    index = plan(table(num_images, seed), shard_records=shard_records)
    shards: dict[tuple[int, int], set[int]] = {}
    for bucket, slot, view in zip(index.bucket, index.slot, index.view, strict=True):
        shards.setdefault((int(bucket), int(slot) // shard_records), set()).add(int(view))
    assert all(len(views) == 1 for views in shards.values())
    places = set(zip(index.bucket.tolist(), index.slot.tolist(), strict=True))
    assert len(places) == len(index)


def test_a_further_view_only_appends() -> None:
    images = table(50)
    two = plan(images, ViewsConfig(seed=3, num=2, scales=(40, 64, 100), max_size=150))
    three = plan(images)
    for name, column in columns(two).items():
        assert np.array_equal(column, getattr(three, name)[: len(two)]), name
    assert three.bucket_names[: len(two.bucket_names)] == two.bucket_names


def test_an_empty_set_of_images_is_refused() -> None:
    with pytest.raises(ValueError, match="nothing to plan"):
        plan(table(0))


def test_more_records_than_a_cache_holds_are_refused_before_they_are_planned() -> None:
    images = table(MAX_RECORDS // 10_000 + 1)
    views = ViewsConfig(num=10_000, scales=(64,), max_size=96)
    config = PlanConfig(views=views, size_divisibility=32, shard_records=4)
    with pytest.raises(ValueError, match=r"^VIEWS\.NUM 10000: 13422 images make more than"):
        make_plan(images, config)
