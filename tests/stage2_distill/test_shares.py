"""The shares of the terms in the first steps, and the warning that goes with them."""

from __future__ import annotations

import math
import re

import pytest
import torch

from stage2_distill.shares import Shares
from tests.stage2_distill.conftest import Configure
from tests.stage2_distill.runs import GID_LOSSES, OWN_LOSSES, build, losses_of, train

Log = pytest.LogCaptureFixture
KEYS = {"loss_a": "A.WEIGHT", "loss_b": "B.WEIGHT"}
STEPS = ("SOLVER.MAX_ITER", 6, "SOLVER.BASE_LR", 1e-4)


def lines_of(caplog: Log) -> list[str]:
    return [text for text in caplog.messages if "shares of the loss" in text]


def warnings_of(caplog: Log) -> list[str]:
    return [text for text in caplog.messages if text.startswith("distillation has")]


def look(shares: Shares, own: float, *distilled: float, iteration: int = 0) -> None:
    """Terms whose gradients are in other proportions than their values."""
    feature = torch.full((1, 1, 2, 2), 2.0, requires_grad=True)
    terms = {
        name: weight * feature.square().sum() for name, weight in zip(KEYS, distilled, strict=False)
    }
    shares.look(iteration, {"loss_cls": own * feature.sum()}, terms, [feature], KEYS)


def test_shares_of_values_and_gradients_add_up_to_one(caplog: Log) -> None:
    with caplog.at_level("INFO"):
        look(Shares(0), 1.0, 0.5, 0.25)
    (line,) = lines_of(caplog)
    found = {name: (a, b) for name, a, b in re.findall(r"(loss_\w) ([\d.]+%) / ([\d.]+%)", line)}
    # Values 8, 8 and 4; gradients at each of four cells 1, 2 and 1.
    assert found == {"loss_a": ("40.0%", "50.0%"), "loss_b": ("20.0%", "25.0%")}
    assert "loss_cls 40.0% / 25.0%" in line and not warnings_of(caplog)


def test_a_pyramid_without_a_gradient_is_not_looked_at(caplog: Log) -> None:
    head = torch.ones((), requires_grad=True)
    with caplog.at_level("INFO"):
        Shares(0).look(0, {"loss_cls": head}, {"loss_a": 2 * head}, [torch.ones(1, 1, 2, 2)], KEYS)
    assert not lines_of(caplog)


@pytest.mark.parametrize(
    ("own", "what"), [(0.1, "98% of the loss"), (1.0, "91% of the gradient at the pyramid")]
)
def test_distillation_that_has_nearly_all_of_either_is_told_once(
    caplog: Log, own: float, what: str
) -> None:
    shares = Shares(0)
    weights = (2.0, 0.5) if own == 0.1 else (0.5, 2.0)
    for iteration in (0, 1):
        look(shares, own, *weights, iteration=iteration)
    (line,) = warnings_of(caplog)
    assert what in line and "\n" not in line
    assert ("lower A.WEIGHT" if own == 0.1 else "lower B.WEIGHT") in line


def test_a_term_without_a_gradient_is_told_once(caplog: Log) -> None:
    shares, feature = Shares(0), torch.ones(1, 1, 2, 2, requires_grad=True)
    of_student = feature.sum()
    terms = {"loss_a": of_student.detach(), "loss_b": 0 * of_student, "loss_c": of_student}
    for iteration in (0, 1):
        shares.look(iteration, {"loss_cls": of_student}, terms, [feature], KEYS)
    (line,) = [one for one in caplog.messages if "no gradient" in one]
    assert line.startswith("loss_a has 33.3% of the loss and no gradient at the pyramid")


def test_a_term_that_is_not_finite_is_not_said_to_be_detached(caplog: Log) -> None:
    feature = torch.ones(1, 1, 2, 2, requires_grad=True)
    terms = {"loss_a": torch.tensor(math.nan)}
    Shares(0).look(0, {"loss_cls": feature.sum()}, terms, [feature], KEYS)
    assert not [one for one in caplog.messages if "no gradient" in one]


def test_the_first_steps_and_the_first_of_full_weight_are_looked_at(
    configure: Configure, caplog: Log
) -> None:
    with caplog.at_level("INFO"):
        train(configure(DISTILL={"WARMUP_ITERS": 5}), *STEPS)
    lines = lines_of(caplog)
    assert [int(re.findall(r"iteration (\d+)", one)[0]) for one in lines] == [0, 1, 2, 4]
    for name in OWN_LOSSES | GID_LOSSES:
        assert all(f"{name} " in one for one in lines)


def test_a_method_that_lets_its_terms_rise_is_looked_at_once_they_have(
    configure: Configure, caplog: Log
) -> None:
    rising = {"DISTILL": {"METHODS": ["frs"], "WARMUP_ITERS": 2}, "FRS": {"RAMP_ITERS": 5}}
    with caplog.at_level("INFO"):
        train(configure(**rising), *STEPS)
    assert [int(re.findall(r"iteration (\d+)", one)[0]) for one in lines_of(caplog)] == [0, 1, 2, 5]


def test_parts_of_a_step_are_looked_at_once(configure: Configure, caplog: Log) -> None:
    with caplog.at_level("INFO"):
        train(configure(SOLVER={"ACCUMULATE": 2, "IMS_PER_BATCH": 4}), *STEPS)
    assert len(lines_of(caplog)) == 3


def test_looking_changes_nothing(configure: Configure) -> None:
    looked = train(configure(), *STEPS)
    trainer = build(configure(), *STEPS)
    trainer.distiller._shares = None
    trainer.train()
    assert losses_of(looked) == losses_of(trainer)
    ours, theirs = (one.detector.state_dict() for one in (looked, trainer))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_step_on_ground_truth_alone_has_no_shares(configure: Configure, caplog: Log) -> None:
    with caplog.at_level("INFO"):
        train(configure(TEACHER={"SOURCE": "none"}), "SOLVER.MAX_ITER", 1)
    assert not lines_of(caplog)
