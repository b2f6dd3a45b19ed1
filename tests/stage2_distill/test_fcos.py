"""FCOS from end to end: teacher, caches of every preset, students, and all commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import stage2_distill.__main__
from configs.loader import load_config
from dataset.scenes import CLASS_NAMES
from detectors import export_model
from stage1_dump.dump import run as dump
from stage2_distill.fidelity import INITIAL
from tests.stage2_distill.conftest import write_student
from tests.stage2_distill.runs import GID_LOSSES, build, losses_of, train
from tests.stage2_distill.test_parity import next_batch, step
from tests.tiny import FCOS_DETECTOR, random_detector, write_config

OWN_LOSSES = {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
PRESETS = ("exact", "balanced", "compact")
HEAD = {**FCOS_DETECTOR["MODEL"]["FCOS"], "NUM_CLASSES": len(CLASS_NAMES)}
TEACHER = {**FCOS_DETECTOR, "MODEL": {**FCOS_DETECTOR["MODEL"], "FCOS": HEAD}}
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def home(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FCOS teacher, run on one view at a time, and its complete caches."""
    home = tmp_path_factory.mktemp("fcos")
    (home / "data").symlink_to(folder / "data")
    cfg = write_config(home / "teacher.yaml", TEACHER)
    export_model(random_detector(cfg, seed=1), home / "teacher.pth")
    for preset in PRESETS:
        dump(load_config(str(write(home, home, preset))))
    return home


def write(home: Path, target: Path, preset: str = "exact", **nodes: dict[str, Any]) -> Path:
    """Write `student.yaml` into `target`; the student's pyramid has other channels."""
    model = {**TEACHER["MODEL"], "FPN": {**TEACHER["MODEL"]["FPN"], "OUT_CHANNELS": 12}}
    nodes = {"CACHE": {}, "TEACHER": {}, **nodes}
    nodes["CACHE"] = {"PRESET": preset, **nodes["CACHE"]}
    nodes["TEACHER"] = {"BATCH": 1, **nodes["TEACHER"]}
    path = write_student(home, target, preset, **nodes)
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, "MODEL": {**model, **nodes.get("MODEL", {})}}))
    return path


@pytest.mark.parametrize("mixed", [False, True], ids=["one size", "mixed sizes"])
@pytest.mark.parametrize("score", ["per_class", "centered"])
def test_losses_and_gradients_of_a_batch_agree(
    home: Path, tmp_path: Path, mixed: bool, score: str
) -> None:
    cached, live = (
        build(write(home, tmp_path, TEACHER={"SOURCE": source}, GID={"SCORE": score}))
        for source in ("cache", "live")
    )
    batch = next_batch(cached, mixed=mixed)
    (ours, our_gradients), (theirs, their_gradients) = (step(t, batch) for t in (cached, live))
    assert ours == theirs and ours.keys() == OWN_LOSSES | GID_LOSSES
    assert all(value > 0 for value in ours.values())
    assert our_gradients.keys() == their_gradients.keys()
    assert len(our_gradients) == sum(p.requires_grad for p in live._trainer.model.parameters())
    assert all(torch.equal(our_gradients[name], other) for name, other in their_gradients.items())


@pytest.mark.parametrize("score", ["max", "centered"])
def test_steps_from_an_exact_cache_are_those_of_the_live_teacher(
    home: Path, tmp_path: Path, score: str
) -> None:
    nodes = {"GID": {"SCORE": score}, "SOLVER": {"MAX_ITER": 5}}
    cached, live = (
        losses_of(train(write(home, tmp_path, TEACHER={"SOURCE": source}, **nodes)))
        for source in ("cache", "live")
    )
    assert cached == live and cached.keys() == OWN_LOSSES | GID_LOSSES


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_within_its_limits(
    home: Path, tmp_path: Path, preset: str, capsys: Capture
) -> None:
    path = write(home, tmp_path, preset, GID={"SCORE": "centered"})
    command = ["fidelity", "--json", "--views", "4", "--student", INITIAL]
    code = stage2_distill.__main__.main([*command, "--config-file", str(path)])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 0 and found["reached"] and found["students"][0]["instances"] > 0, found
