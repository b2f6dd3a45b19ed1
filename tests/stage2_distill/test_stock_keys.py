"""Keys of detectron2's that distillation takes: each is seen to act, with a teacher and without."""

from typing import Any

import pytest

from stage2_distill import data
from stage2_distill.__main__ import main
from stage2_distill.sampler import ViewBatchSampler
from tests.stage2_distill.conftest import Configure
from tests.stage2_distill.runs import build

Capture = pytest.CaptureFixture[str]


@pytest.mark.parametrize(
    ("command", "source"), [("train", "cache"), ("train", "none"), ("show", "cache")]
)
def test_the_student_s_weights_are_read(
    configure: Configure, capsys: Capture, command: str, source: str
) -> None:
    stated = ["TEACHER.SOURCE", source, "MODEL.WEIGHTS", "nowhere.pth"]
    assert main([command, "--config-file", str(configure()), *stated]) == 1
    assert "weights not found: nowhere.pth" in capsys.readouterr().err


def test_the_weights_of_the_file_begin_the_initial_student(
    configure: Configure, capsys: Capture
) -> None:
    path = configure(MODEL={"WEIGHTS": "nowhere.pth"})
    assert main(["fidelity", "--student", "initial", "--config-file", str(path)]) == 1
    assert "weights not found: nowhere.pth" in capsys.readouterr().err


@pytest.mark.parametrize("source", ["cache", "none"])
@pytest.mark.parametrize("grouped", [True, False])
def test_grouping_by_orientation_reaches_the_sampler(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, source: str, grouped: bool
) -> None:
    asked = []

    class Sampler(ViewBatchSampler):
        def __init__(self, *, group_by_aspect: bool, **arguments: Any) -> None:
            asked.append(group_by_aspect)
            super().__init__(group_by_aspect=group_by_aspect, **arguments)

    monkeypatch.setattr(data, "ViewBatchSampler", Sampler)
    build(configure(), "TEACHER.SOURCE", source, "DATALOADER.ASPECT_RATIO_GROUPING", grouped)
    assert asked == [grouped]
