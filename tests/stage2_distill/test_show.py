"""Pictures of what distillation sees: whose boxes, of which images, and what is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from configs.loader import load_config
from dataset.drawing import Panel
from detectors import export_model
from stage2_distill import show
from stage2_distill.__main__ import main
from tests.tiny import random_detector

from .conftest import Configure

Shown = dict[str, list[Panel]]


@pytest.fixture
def command(configure: Configure, tmp_path: Path) -> list[str]:
    """`show` of an untrained student, which has no name for its options yet."""
    config = configure()
    weights = tmp_path / "student.pth"
    export_model(random_detector(load_config(str(config)), seed=5), weights)
    return ["--config-file", str(config), "MODEL.WEIGHTS", str(weights)]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> Shown:
    """Name of each picture to its panels."""
    found: Shown = {}
    monkeypatch.setattr(
        show, "draw_panels", lambda path, panels, columns: found.update({path.stem: panels})
    )
    return found


def run(command: list[str], *options: Any) -> int:
    return main(["show", *map(str, options), *command])


def labels(panel: Panel) -> list[str]:
    return [label for group in panel.groups for label in group.labels]


def test_ground_truth_is_named_and_gis_are_numbered_by_kind(
    command: list[str], shown: Shown
) -> None:
    assert run(command, "--count", 1, "--score", 0) == 0
    ((truth, teacher, student, gis),) = shown.values()
    assert {label.isalpha() for label in labels(truth)} == {True}
    assert [panel.groups[0].kind for panel in (truth, teacher, student)] == [
        "ground truth", "teacher", "student",
    ]  # fmt: skip
    kinds = ("positive", "semi-positive", "negative", "other")
    assert list(dict.fromkeys(group.kind for group in gis.groups)) == [f"GI, {k}" for k in kinds]
    found = [label.split() for label in labels(gis)]
    assert sorted(int(number) for number, *_ in found) == list(range(1, len(found) + 1))
    assert {kind for _, kind, _ in found} <= set(kinds) and len(found) > 1
    best_first = sorted(found, key=lambda one: int(one[0]))
    scores = np.array([float(score) for *_, score in best_first])
    assert (np.diff(scores) <= 0).all()
    of_all = [truth, teacher, student, *gis.groups]
    colours = {(one.groups[0] if isinstance(one, Panel) else one).colour for one in of_all}
    assert len(colours) == 7


def test_images_are_chosen_by_id(command: list[str], shown: Shown) -> None:
    assert run(command, "--image-id", 7, "--image-id", 3) == 0
    assert list(shown) == ["view_7", "view_3"]


def test_an_unknown_id_is_refused_in_one_line(
    command: list[str], shown: Shown, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(command, "--image-id", 7, "--image-id", 99) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("error: --image-id 99: not among the 12 images to train on, whose ids")
    assert not shown


def test_ids_and_a_count_exclude_each_other(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run(command, "--image-id", 7, "--count", 2)
    assert "not allowed with argument" in capsys.readouterr().err


def test_the_score_hides_detections_below_it(command: list[str], shown: Shown) -> None:
    assert run(command, "--count", 1, "--score", 0) == 0
    ((_, teacher, *_),) = shown.values()
    scores = sorted(float(label.split()[-1]) for label in labels(teacher))
    middle = scores[len(scores) // 2]
    assert run(command, "--count", 1, "--score", middle) == 0
    ((_, fewer, *_),) = shown.values()
    assert 0 < len(labels(fewer)) < len(scores)
    assert f" {len(labels(fewer))} boxes of score {middle:g} or more" in fewer.title
    with pytest.raises(SystemExit):
        run(command, "--score", 1.5)


def test_a_baseline_is_drawn_beside(
    command: list[str], shown: Shown, configure: Configure, tmp_path: Path
) -> None:
    other = tmp_path / "baseline.pth"
    export_model(random_detector(load_config(str(configure())), seed=6), other)
    assert run(command, "--count", 1, "--score", 0, "--baseline", other) == 0
    ((_, _, baseline, student, _),) = shown.values()
    assert baseline.title.startswith("baseline: ") and student.title.startswith("student: ")
    assert labels(baseline) != labels(student)
