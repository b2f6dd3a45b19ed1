"""The student may start with the teacher's head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.modeling import build_model

from configs.loader import load_config
from detectors import Setup
from stage2_distill.inherit import inherit_head
from stage2_distill.trainer import DistillTrainer
from tests.stage2_distill.conftest import STUDENT, Configure
from tests.stage2_distill.runs import build, train
from tests.stage2_distill.test_students import model

HEAD = {"INHERIT": "head"}


def started(configure: Configure, channels: int, **nodes: Any) -> dict[str, torch.Tensor]:
    """The student's weights before its first step."""
    fpn = {**STUDENT["MODEL"]["FPN"], "OUT_CHANNELS": channels}
    trainer = build(configure("balanced", MODEL=model(FPN=fpn), **nodes))
    trainer.resume_or_load(resume=False)
    return dict(trainer.detector.state_dict())


def test_by_default_nothing_is_inherited(configure: Configure, folder: Any) -> None:
    teacher = torch.load(folder / "teacher.pth", weights_only=True)["model"]
    student = started(configure, 8)
    assert not torch.equal(student["head.cls_score.weight"], teacher["head.cls_score.weight"])


@pytest.mark.parametrize("source", ["cache", "live", "none"])
def test_the_whole_head_is_copied_where_the_pyramids_are_of_one_width(
    configure: Configure, folder: Any, source: str, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = torch.load(folder / "teacher.pth", weights_only=True)["model"]
    with caplog.at_level("INFO"):
        student = started(configure, 8, TEACHER={**HEAD, "SOURCE": source})
    head = [name for name in student if name.startswith("head.")]
    assert head and all(torch.equal(student[name], teacher[name]) for name in head)
    rest = [name for name in student if name.startswith("backbone.bottom_up.res2")]
    assert any(not torch.equal(student[name], teacher[name]) for name in rest)
    (line,) = [text for text in caplog.messages if "copied from the teacher's head" in text]
    assert all(name.removeprefix("head.") in line for name in head)


def test_of_another_pyramid_only_what_fits_is_copied_and_the_rest_is_named(
    configure: Configure, folder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = torch.load(folder / "teacher.pth", weights_only=True)["model"]
    with caplog.at_level("INFO"):
        student = started(configure, 12, TEACHER=HEAD)
    for name in ("head.cls_score", "head.bbox_pred"):
        assert torch.equal(student[f"{name}.bias"], teacher[f"{name}.bias"])
    (line,) = [text for text in caplog.messages if "not copied" in text]
    assert "cls_score.weight: student (15, 12, 3, 3), teacher (15, 8, 3, 3)" in line


def test_a_head_of_which_nothing_fits_is_refused(configure: Configure) -> None:
    student = load_config(str(configure()), ["MODEL.RETINANET.NUM_CLASSES", "7"])
    student.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    with pytest.raises(ValueError, match=r"no tensor .* fits .*student \(7,\), teacher \(15,\)"):
        inherit_head(build_model(student), Setup(student))


def test_a_resumed_student_keeps_its_own_head(configure: Configure) -> None:
    fpn = {**STUDENT["MODEL"]["FPN"], "OUT_CHANNELS": 8}
    path = configure("balanced", MODEL=model(FPN=fpn), TEACHER=HEAD)
    trained = train(path).detector.state_dict()
    again = build(path)
    again.resume_or_load(resume=True)
    weights = again.detector.state_dict()
    assert all(torch.equal(weights[name], trained[name]) for name in trained)


def test_missing_weights_are_named_before_a_model_is_built(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DistillTrainer, "build_model", None)
    with pytest.raises(FileNotFoundError, match=r"weights not found: nowhere\.pth"):
        build(configure(TEACHER={**HEAD, "SOURCE": "none", "WEIGHTS": "nowhere.pth"}))
