"""The share of waiting, averaged weights and the best checkpoint, in short runs."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine.train_loop import TrainerBase
from torch import nn

from detectors.averaging import MovingAverage
from detectors.hooks import WAITING, KeepBest, UpdateAverage, WaitingShare


class Run(TrainerBase):
    """Steps that log what they are told to, and let a weight grow by one."""

    def __init__(self, logged: list[dict[str, float]], model: nn.Module) -> None:
        super().__init__()
        self.start_iter = 0
        self._logged = logged
        self._model = model

    def run_step(self) -> None:
        self.storage.put_scalars(**self._logged[self.iter])
        with torch.no_grad():
            for parameter in self._model.parameters():
                parameter += 1


def run(logged: list[dict[str, float]], model: nn.Module, *hooks: Any, start: int = 0) -> Run:
    trainer = Run(logged, model)
    trainer.start_iter = start
    trainer.register_hooks(list(hooks))
    trainer.train(start, len(logged))
    return trainer


def zeros() -> nn.Module:
    model = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(model.weight)
    return model


def test_the_share_of_waiting_is_that_of_the_last_steps_together() -> None:
    # The timer begins later than the loader's clock.
    logged = [{"data_time": 9.0}, {"data_time": 9.0}, {"data_time": 0.1, "time": 1.0}]
    logged += [{"data_time": 0.3, "time": 1.0}]
    trainer = run(logged, zeros(), WaitingShare())
    shares = [value for value, _ in trainer.storage.history(WAITING).values()]
    assert shares == pytest.approx([0.1, 0.2])


def test_averaged_weights_follow_the_model() -> None:
    model = zeros()
    average = MovingAverage(model, 0.9)
    run([{}] * 3, model, UpdateAverage(average, model))
    # 1, then 0.9 * 1 + 0.1 * 2, then 0.9 * 1.1 + 0.1 * 3
    assert average.module.weight.item() == pytest.approx(1.29)
    assert model.weight.item() == 3.0


def test_the_best_weights_are_kept_and_a_resumed_run_does_not_start_from_them(
    tmp_path: Path,
) -> None:
    model = zeros()
    logged = [{"val/AP": ap} for ap in (1.0, 5.0, 3.0)]
    run(logged, model, KeepBest(1, model, tmp_path, "val/AP"))
    saved = torch.load(tmp_path / "model_best.pth", weights_only=True)
    assert saved["model"]["weight"].item() == 2.0
    assert json.loads((tmp_path / "model_best.json").read_text()) == {"val/AP": 5.0, "iteration": 1}
    assert not (tmp_path / "last_checkpoint").exists()
    run([*logged, {"val/AP": 4.0}], model, KeepBest(1, model, tmp_path, "val/AP"), start=3)
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 1
    run([*logged, {"val/AP": 6.0}], model, KeepBest(1, model, tmp_path, "val/AP"), start=3)
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 3


def test_a_disk_that_fills_up_leaves_the_best_weights_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = zeros()
    run([{"val/AP": 1.0}], model, KeepBest(1, model, tmp_path, "val/AP"))

    def fill(content: Any, file: Any) -> None:
        file.write(b"PK")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", fill)
    with pytest.raises(OSError, match="No space left"):
        run([{}, {"val/AP": 2.0}], model, KeepBest(1, model, tmp_path, "val/AP"), start=1)
    assert torch.load(tmp_path / "model_best.pth", weights_only=True)["iteration"] == 0
    assert json.loads((tmp_path / "model_best.json").read_text()) == {"val/AP": 1.0, "iteration": 0}
