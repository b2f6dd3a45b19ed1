"""TF32 in the forwards of a student and its teacher: never in a float32 teacher's."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from configs.loader import load_config
from detectors.families.retinanet import RetinaNetFamily
from stage1_dump.dump import run as dump
from stage2_distill.__main__ import main
from stage2_distill.fidelity import INITIAL
from tests.stage2_distill.conftest import Configure
from tests.stage2_distill.runs import train


@pytest.fixture
def forwards(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """For each forward of a detector, in order: was TF32 allowed?"""
    found: list[bool] = []
    run = RetinaNetFamily.run

    def spy(self: RetinaNetFamily, model: Any, batch: Any) -> Any:
        precision = torch.get_float32_matmul_precision()
        found.append(torch.backends.cudnn.allow_tf32 or precision != "highest")
        return run(self, model, batch)

    monkeypatch.setattr(RetinaNetFamily, "run", spy)
    return found


def test_a_live_teacher_computes_in_float32_beside_a_student_that_need_not(
    configure: Configure, forwards: list[bool]
) -> None:
    train(configure(TEACHER={"SOURCE": "live"}), "SOLVER.MAX_ITER", 1)
    assert set(forwards) == {True, False}
    # Of three views of up to three padded sizes, all but the student's one forward are teachers'.
    assert forwards.count(True) == 1


def test_a_dump_and_all_of_fidelity_compute_without_tf32(
    configure: Configure, forwards: list[bool]
) -> None:
    dump(load_config(str(configure(CACHE={"LOCATION": str(configure().parent / "cache")}))))
    dumped = len(forwards)
    command = ["fidelity", "--views", "4", "--student", INITIAL, "--config-file"]
    assert main([*command, str(configure())]) == 0
    assert len(forwards) > dumped > 0 and not any(forwards)
