"""Records of several padded sizes on the grid of one batch."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage2_distill.teacher import _num_anchors
from stage2_distill.teacher_batch import Grid, TeacherBatch, placing_of, split_levels
from storage import Geometry, Signal
from tests.stage2_distill.cases import make_case, record, together

SEEDS = st.integers(0, 2**32 - 1)


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


def test_records_of_the_batches_size_are_as_they_were_decoded() -> None:
    case = make_case(4, "random")
    batch, one = together(case, [0], case.sizes), record(case.images[0])
    flat = torch.cat([level.flatten(2) for level in batch.features], dim=2)
    assert torch.equal(flat[0], one["features"])
    assert torch.equal(batch.probabilities[0], one["scores"])
    assert torch.equal(batch.deltas[0], one["deltas"])
    assert batch.valid.all() and batch.valid.shape == batch.deltas.shape[:2]


@pytest.mark.parametrize(
    ("anchors", "count"),
    [({}, 0), ({"quality": 1}, 1), ({"quality": 1, "scores": 3}, 3), ({"deltas": 9}, 9)],
)
def test_what_is_valid_are_the_places_of_scores_and_deltas(
    anchors: dict[str, int], count: int
) -> None:
    signals = [Signal("features", "maps", {"channels": 2})]
    for name, number in anchors.items():
        kind, sizes = ("deltas", {}) if name == "deltas" else ("scores", {"classes": 1})
        signals.append(Signal(name, kind, {"anchors": number, **sizes}))
    stored: Any = SimpleNamespace(signals=tuple(signals))
    assert _num_anchors(stored) == count


def test_without_features_a_batch_has_none() -> None:
    values = {"scores": torch.rand(1, 4, 2), "deltas": torch.rand(1, 4, 4)}
    grid = Grid([Geometry(16, 16, ((2, 2),))], [(2, 2)], [0], torch.device("cpu"))
    batch = TeacherBatch.of_values(values, grid, num_anchors=1)
    assert batch.features == [] and batch.probabilities is values["scores"]


def test_without_places_a_batch_has_features_and_says_what_is_inside() -> None:
    geometries = [Geometry(16, 16, ((2, 2), (1, 1))), Geometry(16, 8, ((2, 1), (1, 1)))]
    grid = Grid(geometries, [(2, 2)], [0], torch.device("cpu"))
    values = {"features": torch.arange(30.0).view(2, 3, 5)}
    batch = TeacherBatch.of_values(values, grid, num_anchors=0)
    assert [tuple(level.shape) for level in batch.features] == [(2, 3, 2, 2)]
    assert torch.equal(batch.features[0][0, 0], torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    assert batch.inside[0][:, 0].tolist() == [[[True, True]] * 2, [[True, False]] * 2]
    assert batch.probabilities.numel() == batch.deltas.numel() == batch.valid.numel() == 0


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


def test_a_record_larger_than_the_batch_is_refused() -> None:
    case = make_case(2, "random")
    smaller = [(h - 1, w) for h, w in case.sizes]
    with pytest.raises(ValueError, match="do not fit into the batch's levels"):
        together(case, [0], smaller)


def test_records_of_other_levels_are_refused() -> None:
    geometries = [Geometry(16, 16, ((2, 2), (1, 1))), Geometry(16, 16, ((2, 2),))]
    with pytest.raises(ValueError, match="do not fit into the batch's levels"):
        placing_of(geometries, [(2, 2), (1, 1)], torch.device("cpu"))
