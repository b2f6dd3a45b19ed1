"""Records of several padded sizes on the grid of one batch."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage2_distill.teacher_batch import (
    TeacherBatch,
    TeacherGroup,
    assemble,
    split_levels,
)
from tests.stage2_distill.cases import Case, make_case, tensor, together

SEEDS = st.integers(0, 2**32 - 1)


def group(case: Case, number: int, positions: list[int]) -> TeacherGroup:
    """One record of a case, as a group of one."""
    image = case.images[number]
    return TeacherGroup(
        positions=positions,
        features=[tensor(level)[None] for level in image.features],
        probabilities=tensor(image.probabilities)[None],
        deltas=tensor(image.deltas)[None],
    )


def joined(groups: list[TeacherGroup], positions: list[int]) -> TeacherGroup:
    """Groups of one size as one."""
    return TeacherGroup(
        positions=positions,
        features=[torch.cat(levels) for levels in zip(*(g.features for g in groups), strict=True)],
        probabilities=torch.cat([g.probabilities for g in groups]),
        deltas=torch.cat([g.deltas for g in groups]),
    )


def assert_equal(one: TeacherBatch, other: TeacherBatch) -> None:
    for left, right in zip(one.features, other.features, strict=True):
        assert torch.equal(left, right)
    assert torch.equal(one.probabilities, other.probabilities)
    assert torch.equal(one.deltas, other.deltas)
    assert torch.equal(one.valid, other.valid)


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS)
def test_every_anchor_and_cell_comes_to_its_place(seed: int) -> None:
    case = make_case(seed, "random", images=3)
    batch = case.teacher()
    for number, image in enumerate(case.images):
        probabilities, deltas, valid = case.on_batch_grid(number)
        np.testing.assert_array_equal(batch.probabilities[number].numpy(), probabilities)
        np.testing.assert_array_equal(batch.deltas[number].numpy(), deltas)
        np.testing.assert_array_equal(batch.valid[number].numpy(), valid)
        for level, whole in zip(image.features, batch.features, strict=True):
            _, height, width = level.shape
            rows = np.minimum(np.arange(whole.shape[2]), height - 1)
            columns = np.minimum(np.arange(whole.shape[3]), width - 1)
            wanted = level[:, rows][:, :, columns]  # the last row and column, repeated
            np.testing.assert_array_equal(whole[number].numpy(), wanted)


def test_groups_come_to_their_places_in_any_order() -> None:
    case = make_case(2, "random", images=3)
    case.images[2] = dataclasses.replace(case.images[0])
    pair = joined([group(case, 0, [0]), group(case, 2, [2])], [0, 2])
    grouped = together([group(case, 1, [1]), pair], case.sizes, case.num_anchors)
    assert_equal(grouped, case.teacher())
    swapped = dataclasses.replace(pair, positions=[2, 0])
    assert_equal(
        together([swapped, group(case, 1, [1])], case.sizes, case.num_anchors),
        case.teacher(),
    )


def test_one_group_of_the_batches_size_is_not_copied() -> None:
    case = make_case(4, "random")
    only = group(case, 0, [0])
    batch = together([only], case.sizes, case.num_anchors)
    assert batch.probabilities.data_ptr() == only.probabilities.data_ptr()
    assert batch.deltas.data_ptr() == only.deltas.data_ptr()
    for level, given_ in zip(batch.features, only.features, strict=True):
        assert level.data_ptr() == given_.data_ptr()
    assert batch.valid.all() and batch.valid.shape == only.deltas.shape[:2]


def test_a_group_in_another_order_is_reordered() -> None:
    case = make_case(4, "random")
    one, two = group(case, 0, [0]), group(case, 0, [1])
    two = dataclasses.replace(two, deltas=two.deltas + 1)
    both = joined([two, one], [1, 0])
    batch = together([both], case.sizes, case.num_anchors)
    assert torch.equal(batch.deltas, torch.cat([one.deltas, two.deltas]))


def test_one_group_at_a_time_is_alive_beside_the_batch() -> None:
    case = make_case(2, "random", images=3)
    alive: list[weakref.ref[TeacherGroup]] = []

    def made() -> Iterator[TeacherGroup]:
        for number in range(3):
            assert not any(one() for one in alive)
            yield remembered(group(case, number, [number]))

    def remembered(one: TeacherGroup) -> TeacherGroup:
        alive.append(weakref.ref(one))
        return one

    batch = assemble(made(), num_images=3, level_sizes=case.sizes, num_anchors=case.num_anchors)
    assert_equal(batch, case.teacher())


def test_codes_in_half_precision_become_float32() -> None:
    case = make_case(4, "random", images=2)
    groups = [
        TeacherGroup(
            positions=[place],
            features=[tensor(level)[None].half() for level in image.features],
            probabilities=tensor(image.probabilities)[None].half(),
            deltas=tensor(image.deltas)[None].half(),
        )
        for place, image in enumerate(case.images)
    ]
    for chosen, sizes in ((groups, case.sizes), (groups[:1], case.images[0].sizes)):
        batch = together(chosen, sizes, case.num_anchors)
        for values in (*batch.features, batch.probabilities, batch.deltas):
            assert values.dtype == torch.float32


def test_levels_are_views_in_the_order_of_positions() -> None:
    flat = torch.arange(2 * 3 * 10).reshape(2, 3, 10)
    levels = split_levels(flat, [(2, 4), (1, 2)])
    assert [tuple(level.shape) for level in levels] == [(2, 3, 2, 4), (2, 3, 1, 2)]
    assert torch.equal(levels[0][1, 2], flat[1, 2, :8].reshape(2, 4))
    assert torch.equal(levels[1][1, 2], flat[1, 2, 8:].reshape(1, 2))
    assert levels[0].data_ptr() == flat.data_ptr()


def test_levels_that_do_not_add_up_are_refused() -> None:
    with pytest.raises(ValueError, match=r"must be \(n, C, 10\) .* got \(2, 3, 11\)"):
        split_levels(torch.zeros(2, 3, 11), [(2, 4), (1, 2)])


@pytest.mark.parametrize("positions", [[[0], [0]], [[0], [2]], [[1], [2]]])
def test_places_are_filled_once_each(positions: list[list[int]]) -> None:
    case = make_case(2, "random", images=2)
    groups = [group(case, number, where) for number, where in enumerate(positions)]
    with pytest.raises(ValueError, match=r"places 0\.\.1 once each"):
        together(groups, case.sizes, case.num_anchors)


def test_no_records_make_no_batch() -> None:
    with pytest.raises(ValueError, match=r"places 0\.\.0 once each, got \[\]"):
        assemble([], num_images=1, level_sizes=[(2, 2)], num_anchors=1)


def test_a_record_larger_than_the_batch_is_refused() -> None:
    case = make_case(2, "random")
    smaller = [(h - 1, w) for h, w in case.sizes]
    with pytest.raises(ValueError, match="do not fit into the batch's levels"):
        together([group(case, 0, [0])], smaller, case.num_anchors)


def test_a_record_with_other_levels_is_refused() -> None:
    case = make_case(2, "random")
    with pytest.raises(ValueError, match="do not fit into the batch's levels"):
        together([group(case, 0, [0])], case.sizes[:1], case.num_anchors)


@pytest.mark.parametrize("field", ["probabilities", "deltas"])
def test_arrays_that_contradict_the_grid_are_refused(field: str) -> None:
    case = make_case(2, "random")
    broken = group(case, 0, [0])
    broken = dataclasses.replace(broken, **{field: getattr(broken, field)[:, 1:]})
    with pytest.raises(ValueError, match=f"{field} must be"):
        together([broken], case.sizes, case.num_anchors)


def test_records_with_other_channels_or_classes_are_refused() -> None:
    case, other = make_case(2, "random"), make_case(2, "random", channels=5)
    with pytest.raises(ValueError, match="features of level 0 must be"):
        together([group(case, 0, [0]), group(other, 0, [1])], case.sizes, case.num_anchors)
    fewer = group(case, 0, [1])
    fewer = dataclasses.replace(fewer, probabilities=fewer.probabilities[:, :, 1:])
    with pytest.raises(ValueError, match="probabilities must be"):
        together([group(case, 0, [0]), fewer], case.sizes, case.num_anchors)
