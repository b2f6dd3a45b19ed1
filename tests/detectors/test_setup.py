"""What follows from a config is worked out once, and only what is wanted."""

import pickle
from pathlib import Path

import pytest
import yaml

import detectors.setup
from configs.loader import load_config
from configs.nodes import Settings
from detectors import Setup
from tests.tiny import DETECTOR, write_config


def write_pair(folder: Path, **teacher: str) -> Path:
    """A student's config, and beside it the one of its teacher, which starts from other weights."""
    started = {**DETECTOR, "MODEL": {**DETECTOR["MODEL"], "WEIGHTS": "of_a_backbone.pkl"}}
    write_config(folder / "teacher.yaml", started)
    node = {"CONFIG": "teacher.yaml", "WEIGHTS": "trained.pth", **teacher}
    path = folder / "student.yaml"
    write_config(path, {**DETECTOR, "TEACHER": node, "VIEWS": {"NUM": 3}})
    return path


def test_each_part_is_worked_out_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(load_config(str(write_pair(tmp_path))))
    settings, teacher = setup.settings, setup.trained_teacher_cfg
    assert settings.views.num == 3 and teacher.MODEL.WEIGHTS == "trained.pth"
    for name in ("settings", "teacher_config", "family_of"):
        monkeypatch.setattr(detectors.setup, name, None)
    assert setup.settings is settings and setup.trained_teacher_cfg is teacher


def test_a_teacher_without_weights_is_refused_only_by_who_loads_it(tmp_path: Path) -> None:
    setup = Setup(load_config(str(write_pair(tmp_path, WEIGHTS=""))))
    assert setup.teacher_cfg.MODEL.WEIGHTS == ""
    with pytest.raises(ValueError, match=r"TEACHER\.WEIGHTS: expected the trained .*, got ''"):
        _ = setup.trained_teacher_cfg


def test_a_config_that_distils_nothing_needs_no_teacher_and_no_family(tmp_path: Path) -> None:
    path = tmp_path / "plain.yaml"
    path.write_text(yaml.safe_dump({"MODEL": {"META_ARCHITECTURE": "ProposalNetwork"}}))
    setup = Setup(load_config(str(path)))
    assert setup.settings == Settings()
    with pytest.raises(ValueError, match=r"ProposalNetwork.*distillation supports"):
        _ = setup.family


def test_a_worker_gets_the_config_alone(tmp_path: Path) -> None:
    setup = Setup(load_config(str(write_pair(tmp_path))))
    bare = pickle.dumps(setup)
    _ = setup.settings, setup.family, setup.teacher_family
    assert pickle.dumps(setup) == bare
    assert pickle.loads(bare).settings == setup.settings
