"""Early stopping, in short runs of the plain trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.loader import load_config
from detectors import trainer as trainer_module
from detectors.command import register_data
from detectors.trainer import Trainer
from tests.detectors.plain import write_plain


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    test = {"EVAL_PERIOD": 1, "PATIENCE": 2}
    return write_plain(tmp_path_factory.mktemp("patience"), TEST=test, SOLVER={"MAX_ITER": 9})


class Evaluations:
    """In place of `evaluate`: gives one AP after the other, and counts."""

    def __init__(self, *values: float) -> None:
        self.values = list(values)

    def __call__(self, *_: object) -> dict[str, dict[str, float]]:
        if not self.values:
            raise RuntimeError("killed")
        return {"folder_val": {"AP": self.values.pop(0)}}


def train(
    config: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, *values: float, **keys: Any
) -> Trainer:
    """Train or resume, with these evaluations; the run is killed in the one that is missing."""
    monkeypatch.setattr(trainer_module, "evaluate", Evaluations(*values))
    overrides = [part for key, value in keys.items() for part in (key.replace("__", "."), value)]
    cfg = load_config(str(config), ["OUTPUT_DIR", str(folder), *overrides])
    register_data(cfg)
    trainer = Trainer(cfg)
    trainer.resume_or_load(resume=True)
    trainer.train()
    return trainer


def final(folder: Path) -> dict[str, Any]:
    assert (folder / "last_checkpoint").read_text() == "model_final.pth"
    content: dict[str, Any] = torch.load(folder / "model_final.pth", weights_only=True)
    return content


def test_a_training_ends_after_so_many_evaluations_that_were_no_better(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Equal is not better; what is better starts the count anew. The last one is not done twice.
    trainer = train(config, tmp_path, monkeypatch, 2.0, 1.0, 3.0, 3.0, 1.0)
    assert trainer.iter == trainer.max_iter == 5
    assert trainer.results == {"folder_val": {"AP": 1.0}}
    assert final(tmp_path)["iteration"] == 4
    logged = [value for value, _ in trainer.storage.history("folder_val/AP").values()]
    assert logged == [2.0, 1.0, 3.0, 3.0, 1.0, 1.0]
    assert json.loads((tmp_path / "model_best.json").read_text())["folder_val/AP"] == 3.0


def test_a_run_that_ended_early_is_not_gone_on_with_unless_with_more_patience(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config, tmp_path, monkeypatch, 2.0, 1.0, 1.0)
    before = final(tmp_path)["model"]
    resumed = train(config, tmp_path, monkeypatch, 1.0)
    assert resumed.results == {"folder_val": {"AP": 1.0}}
    again = final(tmp_path)
    assert again["iteration"] == 2
    assert all(torch.equal(again["model"][name], value) for name, value in before.items())
    train(config, tmp_path, monkeypatch, 1.5, TEST__PATIENCE=3)
    assert final(tmp_path)["iteration"] == 3


def test_an_evaluation_in_which_a_run_was_killed_is_made_up_for(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="killed"):
        train(config, tmp_path, monkeypatch, 2.0)
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    # The second evaluation again, then the third.
    trainer = train(config, tmp_path, monkeypatch, 1.0, 1.0)
    assert trainer.max_iter == 3 == final(tmp_path)["iteration"] + 1


@pytest.mark.parametrize("patience", [0, 9])
def test_what_is_made_up_for_may_be_the_best(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, patience: int
) -> None:
    keys = {"TEST__PATIENCE": patience, "SOLVER__MAX_ITER": 4}
    with pytest.raises(RuntimeError, match="killed"):
        train(config, tmp_path, monkeypatch, 2.0, **keys)
    trainer = train(config, tmp_path, monkeypatch, 5.0, 1.0, 1.0, **keys)
    best = json.loads((tmp_path / "model_best.json").read_text())
    assert best == {"folder_val/AP": 5.0, "iteration": 1}
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 1
    assert trainer.storage.history("folder_val/AP").values()[0] == (5.0, 1)


def test_without_patience_a_run_goes_on_to_its_end(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(config, tmp_path, monkeypatch, *[0.0] * 5, TEST__PATIENCE=0, SOLVER__MAX_ITER=5)
    assert final(tmp_path)["iteration"] == 4
