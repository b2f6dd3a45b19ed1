"""The student may start with the teacher's head."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from detectron2.modeling import build_model

from configs.loader import load_config
from detectors import Setup
from stage2_distill.inherit import inherit
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
    (line,) = [text for text in caplog.messages if "of the teacher's head" in text]
    assert line.startswith(f"copied {len(head)} of {len(head)} tensors of the teacher's head: ")
    assert all(name.removeprefix("head.") in line for name in head)


def test_of_another_pyramid_only_what_fits_is_copied_and_the_rest_is_named(
    configure: Configure, folder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    teacher = torch.load(folder / "teacher.pth", weights_only=True)["model"]
    with caplog.at_level("INFO"):
        student = started(configure, 12, TEACHER=HEAD)
    for name in ("head.cls_score", "head.bbox_pred"):
        assert torch.equal(student[f"{name}.bias"], teacher[f"{name}.bias"])
    (line,) = [text for text in caplog.messages if "of the student's head" in text]
    assert line.startswith("not copied, 6 tensors")
    assert "cls_score.weight: student (15, 12, 3, 3), teacher (15, 8, 3, 3)" in line


def test_a_head_of_which_nothing_fits_is_refused(configure: Configure) -> None:
    student = load_config(str(configure(TEACHER=HEAD)), ["MODEL.RETINANET.NUM_CLASSES", "7"])
    student.MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS = [[1.0]]
    with pytest.raises(ValueError, match=r"no tensor .* fits .*student \(7,\), teacher \(15,\)"):
        inherit(build_model(student), Setup(student))


NECK = {"INHERIT": "neck+head"}


def neck(channels: int, **nodes: Any) -> dict[str, Any]:
    """Nodes of a student that inherits neck and head; arguments change its network."""
    fpn = {**STUDENT["MODEL"]["FPN"], "OUT_CHANNELS": channels}
    resnets = {**STUDENT["MODEL"]["RESNETS"], **nodes}
    return {"MODEL": model(FPN=fpn, RESNETS=resnets), "TEACHER": NECK}


def copied(configure: Configure, folder: Any, **nodes: Any) -> tuple[set[str], set[str]]:
    """Layers of the student's neck that begin as the teacher's, and the others."""
    teacher = torch.load(folder / "teacher.pth", weights_only=True)["model"]
    trainer = build(configure("balanced", **nodes))
    before = {name: tensor.clone() for name, tensor in trainer.detector.state_dict().items()}
    trainer.resume_or_load(resume=False)
    taken, left = set(), set()
    for name, tensor in trainer.detector.state_dict().items():
        if name.startswith("backbone.") and "bottom_up" not in name:
            is_taken = name in teacher and torch.equal(tensor, teacher[name])
            assert is_taken or torch.equal(tensor, before[name])
            # Biases begin at 0, the teacher's too.
            if tensor.dim() > 1:
                (taken if is_taken else left).add(name.removeprefix("backbone."))
    return taken, left


def test_a_neck_on_a_network_like_the_teacher_s_is_copied_whole(
    configure: Configure, folder: Any
) -> None:
    taken, left = copied(configure, folder, **neck(8))
    assert len(taken) == 8 and not left


def test_of_a_neck_on_another_network_the_laterals_are_left(
    configure: Configure, folder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        taken, left = copied(configure, folder, **neck(8, RES2_OUT_CHANNELS=16))
    assert left == {*(f"fpn_lateral{n}.weight" for n in (3, 4, 5)), "top_block.p6.weight"}
    assert taken == {*(f"fpn_output{n}.weight" for n in (3, 4, 5)), "top_block.p7.weight"}
    lines = [text for text in caplog.messages if "'s neck: " in text]
    assert lines[0].startswith("copied 8 of 16 tensors of the teacher's neck: fpn_output3.weight")
    shapes = "fpn_lateral3.weight: student (8, 32, 1, 1), teacher (8, 16, 1, 1)"
    assert lines[1].startswith("not copied, 8 tensors of the student's neck: ")
    assert shapes in lines[1] and "fpn_lateral3.bias (its layer differs)" in lines[1]
    assert any("tensors of the teacher's head" in text for text in caplog.messages)


def test_a_neck_of_which_nothing_fits_is_refused(configure: Configure) -> None:
    trainer = build(configure("balanced", **neck(12)))
    with pytest.raises(ValueError, match=r"neck\+head: no tensor .*neck fits.*INHERIT head$"):
        trainer.resume_or_load(resume=False)


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
