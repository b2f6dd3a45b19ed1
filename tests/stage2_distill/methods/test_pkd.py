"""The correlation of features, beside plain loops."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from stage2_distill.methods.pkd import normalised, pkd_loss
from stage2_distill.methods.pyramids import Total, of_this_rank
from tests.stage2_distill.methods.contract import Array, Case, LossContract, Pyramid, make_case


def normalised_channel(values: Sequence[float]) -> list[float]:
    if len(values) < 2:
        return [0.0] * len(values)
    mean = math.fsum(values) / len(values)
    squares = math.fsum((value - mean) ** 2 for value in values)
    deviation = math.sqrt(squares / (len(values) - 1))
    return [(value - mean) / (deviation + 1e-6) for value in values]


def channel(level: Array, positions: Array, number: int) -> list[float]:
    places = [place for place in np.ndindex(positions.shape) if positions[place]]
    return [float(level[n, number, y, x]) for n, _, y, x in places]


def reference(student: Pyramid, teacher: Pyramid, inside: Pyramid) -> float:
    """Channel after channel."""
    loss = 0.0
    for s, t, positions in zip(student, teacher, inside, strict=True):
        squares = []
        for number in range(s.shape[1]):
            mine, theirs = (normalised_channel(channel(x, positions, number)) for x in (s, t))
            squares += [(a - b) ** 2 for a, b in zip(mine, theirs, strict=True)]
        loss += 0.5 * sum(squares) / len(squares)
    return loss


class TestLoss(LossContract):
    doubling = staticmethod(lambda n: (2 * n - 1) / (2 * n - 2) if n > 1 else 1.0)

    def loss(self, case: Case, total: Total = of_this_rank) -> Tensor:
        return pkd_loss(case.student, case.teacher, case.inside, total=total)

    def reference(self, student: Pyramid, teacher: Pyramid, inside: Pyramid) -> float:
        return reference(student, teacher, inside)

    def loss_of_ranks(self, case: Case, ranks: Sequence[Case]) -> float:
        """Each normalises alone, so it is the ranks' mean weighted by their positions."""
        loss = 0.0
        for level, everywhere in enumerate(case.inside):
            for rank in ranks:
                one = slice(level, level + 1)
                own = pkd_loss(rank.student[one], rank.teacher[one], rank.inside[one])
                loss += float(own * rank.inside[level].sum() / everywhere.sum())
        return loss


def test_scale_and_offset_of_a_channel_cost_nothing() -> None:
    case = make_case()
    other = [0.5 * level + 7.0 for level in case.teacher]
    assert pkd_loss(other, case.teacher, case.inside).item() == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("constant", [0.0, 0.1, 100.3, -3e4])
def test_a_dead_channel_is_exactly_zero(constant: float, dtype: torch.dtype) -> None:
    """Not what rounding makes of it, which epsilon would not hide."""
    case = make_case()
    level, inside = case.student[0].to(dtype), case.inside[0]
    level[:, 1] = constant
    assert not normalised(level, inside)[:, 1].any()


@pytest.mark.parametrize("side", ["student", "teacher", "both"])
def test_dead_channels_have_the_reference_and_finite_gradients(side: str) -> None:
    case = make_case()
    for name in ("student", "teacher") if side == "both" else (side,):
        for level in getattr(case, name):
            level[:, 0] = 2.5
    wanted = reference(*([x.numpy() for x in p] for p in (case.student, case.teacher, case.inside)))
    student = [level.requires_grad_() for level in case.student]
    loss = pkd_loss(student, case.teacher, case.inside)
    assert loss.item() == pytest.approx(wanted, rel=1e-9)
    assert all(one.isfinite().all() for one in torch.autograd.grad(loss, student))


def test_one_position_in_the_batch_has_neither_loss_nor_gradient() -> None:
    case = make_case(own_sizes=[[(1, 1)]])
    student = [level.requires_grad_() for level in case.student]
    loss = pkd_loss(student, case.teacher, case.inside)
    assert loss == 0.0
    assert not torch.autograd.grad(loss, student)[0].any()


def test_a_first_image_without_positions_is_like_none() -> None:
    case = make_case().to(torch.float32)
    inside = [level.clone() for level in case.inside]
    for level in inside:
        level[0] = False
    found = pkd_loss(case.student, case.teacher, inside)
    rest = case.images(slice(1, 3))
    wanted = pkd_loss(rest.student, rest.teacher, rest.inside)
    assert found.item() == pytest.approx(wanted.item(), rel=1e-6)
    garbage = [
        level.masked_fill(~own, 1e3) for level, own in zip(case.student, inside, strict=True)
    ]
    assert torch.equal(pkd_loss(garbage, case.teacher, inside), found)
