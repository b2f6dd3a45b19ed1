"""The feature and the relation loss, on pooled features."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stage2_distill.methods.gid.losses import feature_loss, relation_loss
from tests.stage2_distill import reference
from tests.stage2_distill.cases import tensor

SEEDS = st.integers(0, 2**32 - 1)


def test_feature_loss_sums_channels_and_averages_cells() -> None:
    student, teacher = torch.zeros(4, 3, 2, 2), torch.full((4, 3, 2, 2), 2.0)
    assert feature_loss(student, teacher).item() == pytest.approx(3 * 4.0)


@settings(max_examples=200, deadline=None)
@given(seed=SEEDS, count=st.integers(0, 4), scale=st.sampled_from([1e-3, 1.0, 1e3]))
def test_feature_loss_equals_the_reference(seed: int, count: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    rois = (rng.standard_normal((2, count, 3, 2, 2)) * scale).astype(np.float32)
    wanted = reference.feature_loss(*rois.astype(float))
    found = feature_loss(tensor(rois[0]), tensor(rois[1]))
    assert found.item() == pytest.approx(wanted, rel=1e-5)


def test_feature_gradient_is_right() -> None:
    student = torch.randn(3, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(3, 2, 2, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: feature_loss(x, teacher), student)


@settings(max_examples=200, deadline=None)
@given(seed=SEEDS, count=st.integers(0, 8), offset=st.sampled_from([0.0, 100.0]))
def test_relation_loss_equals_the_reference(seed: int, count: int, offset: float) -> None:
    """Also far from the origin, where |a|^2 + |b|^2 - 2ab would cancel."""
    rng = np.random.default_rng(seed)
    rois = (rng.standard_normal((2, count, 3, 2, 2)) + offset).astype(np.float32)
    wanted = reference.relation_loss(*rois.astype(float).reshape(2, count, 12))
    found = relation_loss(tensor(rois[0]), tensor(rois[1]), [count])
    assert found.item() == pytest.approx(wanted, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_instances_have_no_relation(count: int) -> None:
    student = torch.randn(count, 2, 3, 3, requires_grad=True)
    loss = relation_loss(student, torch.randn(count, 2, 3, 3), [count])
    loss.backward()
    assert loss.item() == 0.0
    assert student.grad is not None and not student.grad.any()


def test_relation_of_groups_is_their_mean_with_the_empty_ones() -> None:
    student, teacher = torch.randn(9, 2, 3, 3), torch.randn(9, 2, 3, 3)
    first = relation_loss(student[:4], teacher[:4], [4])
    last = relation_loss(student[6:], teacher[6:], [3])
    grouped = relation_loss(student, teacher, [4, 2, 0, 3])
    torch.testing.assert_close(grouped, (first + last) / 4)


def test_relation_does_not_see_scale_or_shift() -> None:
    student = torch.randn(5, 2, 3, 3)
    assert relation_loss(student, student * 7 + 3, [5]).item() == pytest.approx(0, abs=1e-6)


def test_relation_gradient_is_right() -> None:
    student = torch.randn(5, 2, 2, 2, dtype=torch.float64, requires_grad=True)
    teacher = torch.randn(5, 2, 2, 2, dtype=torch.float64)
    for groups in ([5], [3, 2]):
        assert torch.autograd.gradcheck(
            lambda x, groups=groups: relation_loss(x, teacher, groups), student
        )


@pytest.mark.parametrize("copies", [2, 4])
def test_identical_instances_have_a_finite_gradient(copies: int) -> None:
    """Some of four alike, and all of them: the distance is 0, where a root has no slope."""
    rois = torch.randn(4, 2, 3, 3)
    rois[:copies] = rois[0]
    student = rois.clone().requires_grad_()
    loss = relation_loss(student, torch.randn(4, 2, 3, 3), [4])
    loss.backward()
    assert torch.isfinite(loss)
    assert student.grad is not None and torch.isfinite(student.grad).all()
    assert student.grad.abs().max() < 10
    assert torch.isfinite(relation_loss(torch.randn(4, 2, 3, 3), rois, [4]))


def test_groups_must_cover_the_instances() -> None:
    with pytest.raises(ValueError, match=r"groups \[2, 2\] do not sum to the 5 GIs"):
        relation_loss(torch.zeros(5, 1, 1, 1), torch.zeros(5, 1, 1, 1), [2, 2])


@pytest.mark.parametrize("loss", [feature_loss, lambda s, t: relation_loss(s, t, [3])])
def test_pooled_features_of_other_shapes_are_refused(loss: Any) -> None:
    with pytest.raises(ValueError, match="must have one shape"):
        loss(torch.zeros(3, 2, 2, 2), torch.zeros(3, 4, 2, 2))
