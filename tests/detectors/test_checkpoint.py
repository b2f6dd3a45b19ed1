"""Checkpoints load in full or not at all, and never run code."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from detectors.checkpoint import SafeCheckpointer, export_model


def make_model() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))


class _RunsCode:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code from a checkpoint was run')",))


def test_an_exported_model_loads_into_another(tmp_path: Path) -> None:
    source, target = make_model(), make_model()
    nn.init.zeros_(target[0].weight)
    export_model(source, tmp_path / "m.pth")
    SafeCheckpointer(target, strict=True).load(str(tmp_path / "m.pth"))
    assert torch.equal(source[0].weight, target[0].weight)
    assert [p.name for p in tmp_path.iterdir()] == ["m.pth"]


def test_model_zoo_pickles_of_arrays_load(tmp_path: Path) -> None:
    model = make_model()
    weights = {name: np.full(t.shape, 0.5, np.float32) for name, t in model.state_dict().items()}
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "somebody"}))
    SafeCheckpointer(model, strict=True).load(str(path))
    assert all((t == 0.5).all() for t in model.state_dict().values())


@pytest.mark.parametrize("name", ["bad.pkl", "bad.pth"])
def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".pkl"):
        path.write_bytes(pickle.dumps({"model": {"0.weight": _RunsCode()}, "__author__": "x"}))
    else:
        torch.save({"model": {"0.weight": _RunsCode()}}, path)
    with pytest.raises(ValueError, match=f"{name}: not a (pickle|checkpoint) of"):
        SafeCheckpointer(make_model()).load(str(path))


@pytest.mark.parametrize("name", ["cut.pkl", "cut.pth"])
def test_a_damaged_checkpoint_is_refused_by_name(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match=name):
        SafeCheckpointer(make_model()).load(str(path))


def test_weights_that_cover_a_part_of_the_model_are_refused(tmp_path: Path) -> None:
    model = make_model()
    state = model.state_dict()
    del state["1.bias"]
    torch.save({"model": state | {"extra": torch.zeros(1)}}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"1\.bias is missing; extra is unknown"):
        SafeCheckpointer(model, strict=True).load(str(tmp_path / "part.pth"))


def test_weights_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    state = make_model().state_dict()
    torch.save({"model": state | {"0.weight": torch.zeros(9, 2)}}, tmp_path / "shape.pth")
    with pytest.raises(ValueError, match=r"0\.weight has shape \(9, 2\), not \(3, 2\)"):
        SafeCheckpointer(make_model(), strict=True).load(str(tmp_path / "shape.pth"))


def test_training_may_start_from_a_part_of_the_weights(tmp_path: Path) -> None:
    model = make_model()
    torch.save({"model": {"0.weight": torch.ones(3, 2)}}, tmp_path / "backbone.pth")
    SafeCheckpointer(model).load(str(tmp_path / "backbone.pth"))
    assert (model[0].weight == 1).all()
