"""The order of images and views is a pure function of seed, rank and iteration."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from stage2_distill.sampler import Draw, Unlabelled, ViewBatchSampler


def make_sampler(num_images: int = 10, **changes: object) -> ViewBatchSampler:
    arguments: dict[str, object] = {
        "is_wide": np.arange(num_images) % 3 == 0,
        "num_views": 3,
        "batch_size": 4,
        "seed": 7,
    }
    return ViewBatchSampler(**(arguments | changes))  # type: ignore[arg-type]


def draws(sampler: ViewBatchSampler, batches: int) -> list[Draw]:
    return [draw for batch in islice(sampler, batches) for draw in batch]


def test_the_same_seed_gives_the_same_batches() -> None:
    assert draws(make_sampler(), 20) == draws(make_sampler(), 20)
    assert draws(make_sampler(), 20) != draws(make_sampler(seed=8), 20)


def test_a_resumed_sampler_goes_on_where_the_first_one_stopped() -> None:
    whole = list(islice(make_sampler(), 25))
    resumed = make_sampler()
    resumed.first_iter = 11
    assert list(islice(resumed, 14)) == whole[11:]


def test_wide_and_tall_images_do_not_share_a_batch() -> None:
    wide = np.arange(10) % 3 == 0
    for batch in islice(make_sampler(), 30):
        assert len({bool(wide[draw.position]) for draw in batch}) == 1


def test_without_grouping_every_epoch_shows_every_image_once() -> None:
    sampler = make_sampler(batch_size=5, group_by_aspect=False)
    for epoch in range(4):
        shown = draws(sampler, 8)[epoch * 10 : (epoch + 1) * 10]
        assert sorted(draw.position for draw in shown) == list(range(10))


def test_as_many_epochs_as_views_show_every_view_of_every_image_once() -> None:
    shown = draws(make_sampler(batch_size=5, group_by_aspect=False), 6)
    assert sorted((d.position, d.view) for d in shown) == [
        (p, v) for p in range(10) for v in range(3)
    ]
    assert len({draw.view for draw in shown[:10]}) > 1


@pytest.mark.parametrize("group_by_aspect", [True, False])
def test_ranks_share_the_batches_of_one(group_by_aspect: bool) -> None:
    common = {"batch_size": 6, "group_by_aspect": group_by_aspect}
    alone = list(islice(make_sampler(11, **common), 20))
    ranks = [islice(make_sampler(11, **common, rank=rank, world_size=3), 20) for rank in range(3)]
    for whole, *parts in zip(alone, *ranks, strict=True):
        assert [len(part) for part in parts] == [2, 2, 2]
        together = [draw for part in parts for draw in part]
        assert sorted(together, key=whole.index) == whole


def test_an_empty_dataset_is_refused() -> None:
    with pytest.raises(ValueError, match="no image is left to train on"):
        make_sampler(0)


LAST = {"last_views": (2, 0), "last_from": 13}


def test_the_last_batches_show_the_last_views_of_the_same_images() -> None:
    usual, with_last = draws(make_sampler(), 20), draws(make_sampler(**LAST), 20)
    assert usual[: 13 * 4] == with_last[: 13 * 4]
    assert {draw.view for draw in usual[13 * 4 :]} == {0, 1, 2}
    assert {draw.view for draw in with_last[13 * 4 :]} == {0, 2}
    assert [draw.position for draw in usual] == [draw.position for draw in with_last]


def test_a_resumed_sampler_shows_the_last_views_from_the_same_iteration_on() -> None:
    whole = list(islice(make_sampler(**LAST), 25))
    for first in (5, 13, 20):
        resumed = make_sampler(**LAST)
        resumed.first_iter = first
        assert list(islice(resumed, 25 - first)) == whole[first:]


def test_a_draw_knows_how_often_its_image_was_shown_before() -> None:
    shown: dict[int, int] = {}
    for draw in draws(make_sampler(), 30):
        assert draw.epoch == shown.get(draw.position, 0)
        shown[draw.position] = draw.epoch + 1


REPEATED = {"repeat_factors": np.array([1.0] * 8 + [2.5, 1.25]), "group_by_aspect": False}


def test_an_epoch_shows_an_image_as_often_as_its_factor_says() -> None:
    shown = Counter(draw.position for draw in draws(make_sampler(**REPEATED), 1175))
    assert [shown[position] for position in range(8)] == pytest.approx([400] * 8, abs=2)
    assert shown[8] == pytest.approx(1000, rel=0.05) and shown[9] == pytest.approx(500, rel=0.05)


def test_factors_of_1_change_nothing() -> None:
    once = {"repeat_factors": np.ones(10)}
    assert draws(make_sampler(**once), 30) == draws(make_sampler(), 30)


def test_every_view_of_a_repeated_image_is_shown_as_often_as_the_others() -> None:
    shown = draws(make_sampler(**REPEATED), 60)
    for position in (0, 8, 9):
        own = [draw for draw in shown if draw.position == position]
        assert [draw.epoch for draw in own] == list(range(len(own)))
        counts = Counter(draw.view for draw in own[: len(own) // 3 * 3])
        assert set(counts.values()) == {len(own) // 3}


def test_repeats_are_the_same_after_a_resumption_and_on_any_number_of_ranks() -> None:
    whole = list(islice(make_sampler(**REPEATED), 25))
    resumed = make_sampler(**REPEATED)
    resumed.first_iter = 11
    assert list(islice(resumed, 14)) == whole[11:]
    ranks = [islice(make_sampler(**REPEATED, rank=rank, world_size=2), 25) for rank in range(2)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        together = [draw for part in parts for draw in part]
        assert sorted(together, key=batch.index) == batch


# The last four of the images have no labels; of these one is wide.
MIXED = {"unlabelled": Unlabelled(images=4, of_batch=2), "batch_size": 6}


def without_labels(draw: Draw) -> bool:
    return draw.position >= 6


def test_a_batch_has_so_many_images_without_labels_behind_the_others() -> None:
    for batch in islice(make_sampler(**MIXED), 30):
        assert [without_labels(draw) for draw in batch] == [False] * 4 + [True] * 2
        assert len({draw.position % 3 == 0 for draw in batch}) == 1


def test_labelled_images_are_drawn_as_if_they_were_alone() -> None:
    mixed = [draw for draw in draws(make_sampler(**MIXED), 30) if not without_labels(draw)]
    assert mixed == draws(make_sampler(6), 30)


def test_every_view_of_an_image_without_labels_is_shown_as_often_as_the_others() -> None:
    nodes = {**MIXED, "group_by_aspect": False}
    shown = [draw for draw in draws(make_sampler(**nodes), 30) if without_labels(draw)]
    assert Counter((draw.position, draw.view) for draw in shown) == {
        (position, view): 5 for position in range(6, 10) for view in range(3)
    }


def test_without_one_of_the_same_orientation_another_comes() -> None:
    wide = np.array([True, False] * 3 + [False] * 4)
    batches = list(islice(make_sampler(**MIXED, is_wide=wide), 30))
    assert any(wide[batch[0].position] for batch in batches)
    counts: dict[int, int] = {}
    for draw in (draw for batch in batches for draw in batch[4:]):
        assert without_labels(draw) and draw.epoch == counts.get(draw.position, 0)
        counts[draw.position] = draw.epoch + 1


def test_images_without_labels_are_the_same_after_a_resumption_and_on_any_ranks() -> None:
    whole = list(islice(make_sampler(**MIXED), 25))
    resumed = make_sampler(**MIXED)
    resumed.first_iter = 11
    assert list(islice(resumed, 14)) == whole[11:]
    ranks = [islice(make_sampler(**MIXED, rank=rank, world_size=3), 25) for rank in range(3)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        assert not any(without_labels(part[0]) for part in parts)
        together = [draw for part in parts for draw in part]
        assert sorted(together, key=batch.index) == batch


def test_every_part_of_a_rank_s_batch_begins_with_labelled_images() -> None:
    in_parts = {**MIXED, "unlabelled": Unlabelled(images=4, of_batch=2, parts=3)}
    for whole, batch in zip(
        islice(make_sampler(**MIXED), 9), islice(make_sampler(**in_parts), 9), strict=True
    ):
        assert sorted(batch, key=whole.index) == whole
        for start in range(0, 6, 2):
            assert not without_labels(batch[start])
