"""Channels as distributions over positions, beside plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from stage2_distill.methods.cwd import cwd_loss
from stage2_distill.methods.pyramids import Total, of_this_rank
from tests.stage2_distill.methods.contract import Case, LossContract, Pyramid, make_case


def softmax(values: list[float]) -> list[float]:
    largest = max(values)
    powers = [math.exp(value - largest) for value in values]
    return [power / sum(powers) for power in powers]


def reference(student: Pyramid, teacher: Pyramid, inside: Pyramid, temperature: float) -> float:
    """Channel after channel."""
    loss = 0.0
    for s, t, positions in zip(student, teacher, inside, strict=True):
        of_level = 0.0
        for n, c in np.ndindex(s.shape[:2]):
            places = [place for place in np.ndindex(s.shape[2:]) if positions[n, 0][place]]
            mine = softmax([s[n, c][place] / temperature for place in places])
            theirs = softmax([t[n, c][place] / temperature for place in places])
            of_level += sum(p * math.log(p / q) for p, q in zip(theirs, mine, strict=True))
        loss += temperature**2 * of_level / (s.shape[0] * s.shape[1])
    return loss


@pytest.mark.parametrize("temperature", [1.0, 3.0], scope="class")
class TestLoss(LossContract):
    @pytest.fixture(autouse=True)
    def _set(self, temperature: float) -> None:
        self.temperature = temperature

    def loss(self, case: Case, total: Total = of_this_rank) -> Tensor:
        return cwd_loss(
            case.student, case.teacher, case.inside, temperature=self.temperature, total=total
        )

    def reference(self, student: Pyramid, teacher: Pyramid, inside: Pyramid) -> float:
        return reference(student, teacher, inside, self.temperature)


def test_an_offset_of_a_channel_costs_nothing_and_one_position_never_does() -> None:
    case = make_case()
    moved = [level + torch.tensor([1.0, -2.0, 30.0]).view(1, 3, 1, 1) for level in case.teacher]
    assert cwd_loss(moved, case.teacher, case.inside).item() == pytest.approx(0.0, abs=1e-12)
    last = slice(2, 3)
    assert cwd_loss(case.student[last], case.teacher[last], case.inside[last]) == 0.0


def test_sharp_features_stay_finite() -> None:
    """Where exp of a feature is beyond float32, and where a probability is below it."""
    case = make_case().to(torch.float32)
    student = [(level * 1e3).requires_grad_() for level in case.student]
    loss = cwd_loss(student, [level * -1e3 for level in case.teacher], case.inside)
    loss.backward()
    assert loss.isfinite() and all(level.grad.isfinite().all() for level in student)


def test_a_record_without_positions_adds_nothing() -> None:
    case = make_case()
    inside = [level.clone() for level in case.inside]
    for level in inside:
        level[2] = False
    student = [level.requires_grad_() for level in case.student]
    loss = cwd_loss(student, case.teacher, inside)
    two = case.images(slice(0, 2))
    assert loss.item() == pytest.approx(
        2 / 3 * cwd_loss(two.student, two.teacher, two.inside).item()
    )
    assert all(not one[2].any() for one in torch.autograd.grad(loss, student))
