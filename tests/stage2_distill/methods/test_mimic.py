"""The mean squared difference, beside plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from stage2_distill.methods.layers import apply_each, per_level, pointwise, where_channels_differ
from stage2_distill.methods.mimic import mimic_loss
from stage2_distill.methods.pyramids import Total, of_this_rank
from tests.stage2_distill.methods.contract import Case, LossContract, Pyramid, make_case


def reference(student: Pyramid, teacher: Pyramid, inside: Pyramid) -> float:
    """Element after element."""
    loss = 0.0
    for s, t, positions in zip(student, teacher, inside, strict=True):
        squares = [
            (s[n, c, y, x] - t[n, c, y, x]) ** 2
            for n, c, y, x in np.ndindex(s.shape)
            if positions[n, 0, y, x]
        ]
        loss += sum(squares) / len(squares)
    return loss


class TestLoss(LossContract):
    def loss(self, case: Case, total: Total = of_this_rank) -> Tensor:
        return mimic_loss(case.student, case.teacher, case.inside, total=total)

    def reference(self, student: Pyramid, teacher: Pyramid, inside: Pyramid) -> float:
        return reference(student, teacher, inside)


def test_without_positions_the_loss_is_zero() -> None:
    case = make_case()
    nothing = [torch.zeros_like(level) for level in case.inside]
    assert mimic_loss(case.student, case.teacher, nothing) == 0.0


def test_without_levels_there_is_nothing_to_compare() -> None:
    with pytest.raises(ValueError, match=r"^expected one level or more, .*, got none$"):
        mimic_loss([], [], [])


def test_the_mean_of_a_count_over_ranks_may_be_below_one() -> None:
    """One position on one of two ranks: its loss counts twice there, and once in their mean."""
    case = make_case(own_sizes=[[(1, 1)]])
    alone = mimic_loss(case.student, case.teacher, case.inside)
    halved = mimic_loss(case.student, case.teacher, case.inside, total=lambda count: count / 2)
    assert halved == 2 * alone


def test_equal_channels_start_from_the_features_themselves() -> None:
    case = make_case().to(torch.float32)
    adaptations = per_level(lambda: pointwise(3, 3), levels=3)
    for mine, theirs in zip(apply_each(adaptations, case.student), case.student, strict=True):
        assert torch.equal(mine, theirs)


def test_other_channels_keep_the_scale() -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 64, 20, 20)
    adapted = where_channels_differ(64, 96)(features)
    assert adapted.shape == (2, 96, 20, 20)
    assert 0.8 < adapted.std() < 1.2


def test_levels_have_weights_of_their_own() -> None:
    first, second = per_level(lambda: pointwise(2, 2), levels=2)
    assert first.weight is not second.weight


def test_where_channels_agree_nothing_is_trained() -> None:
    assert isinstance(where_channels_differ(4, 4), nn.Identity)
