"""The response loss at given places."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stage2_distill.methods.gid.losses import response_loss
from stage2_distill.teacher_batch import TeacherBatch
from tests.stage2_distill import reference
from tests.stage2_distill.cases import STYLES, make_case, tensor

SEEDS = st.integers(0, 2**32 - 1)


def rows_of(assigned: Tensor) -> Tensor:
    """The places of a mask (N, R)."""
    return assigned.flatten().nonzero()[:, 0]


def teacher_of(probabilities: Tensor, deltas: Tensor) -> TeacherBatch:
    """A teacher without features."""
    valid = torch.ones(probabilities.shape[:2], dtype=torch.bool)
    return TeacherBatch(features=[], probabilities=probabilities, deltas=deltas, valid=valid)


@settings(max_examples=200, deadline=None)
@given(
    seed=SEEDS,
    style=st.sampled_from(STYLES),
    share=st.sampled_from([0.0, 0.1, 1.0]),
    beta=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_response_losses_equal_the_reference(
    seed: int, style: str, share: float, beta: float
) -> None:
    """With logits of 80 and 800, and without any assigned anchor."""
    case = make_case(seed, style, images=2)
    teacher = case.teacher()
    assigned = np.random.default_rng(seed).random(case.logits.shape[:2]) < share
    wanted = reference.response_losses(
        case.logits.astype(float),
        case.student_deltas.astype(float),
        teacher.probabilities.double().numpy(),
        teacher.deltas.double().numpy(),
        assigned,
        beta,
    )
    found = response_loss(
        tensor(case.logits),
        tensor(case.student_deltas),
        teacher,
        rows_of(tensor(assigned)),
        beta=beta,
    )
    assert [x.item() for x in found] == pytest.approx(wanted, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("beta", [0.0, 0.3])
def test_response_gradient_is_right(beta: float) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 3, dtype=torch.float64, requires_grad=True)
    deltas = torch.randn(2, 4, 4, dtype=torch.float64, requires_grad=True)
    teacher = teacher_of(
        torch.rand(2, 4, 3, dtype=torch.float64), torch.randn(2, 4, 4, dtype=torch.float64)
    )
    assigned = torch.rand(2, 4) < 0.6
    assert torch.autograd.gradcheck(
        lambda x, y: response_loss(x, y, teacher, rows_of(assigned), beta=beta), (logits, deltas)
    )


def test_only_assigned_anchors_get_a_response_gradient() -> None:
    logits = torch.randn(2, 4, 3, requires_grad=True)
    deltas = torch.randn(2, 4, 4, requires_grad=True)
    assigned = torch.zeros(2, 4, dtype=torch.bool)
    assigned[1, 2] = True
    teacher = teacher_of(torch.rand(2, 4, 3), torch.randn(2, 4, 4))
    torch.stack(
        response_loss(logits, deltas, teacher, rows_of(assigned), beta=0.0)
    ).sum().backward()
    for leaf in (logits, deltas):
        assert leaf.grad is not None
        assert torch.equal(leaf.grad.bool().any(dim=2), assigned)


def test_deltas_are_compared_as_the_family_has_them() -> None:
    deltas = torch.tensor([[[-1.0, 2.0, -3.0, 0.5]]], requires_grad=True)
    teacher = teacher_of(torch.rand(1, 1, 3), torch.tensor([[[-2.0, 1.0, 1.0, -4.0]]]))
    _, regression = response_loss(
        torch.zeros(1, 1, 3), deltas, teacher, torch.tensor([0]), beta=0.0, comparable=torch.relu
    )
    assert regression.item() == 0 + 1 + 1 + 0.5
    regression.backward()
    assert deltas.grad is not None and deltas.grad.tolist() == [[[0, 1, 0, 1]]]
