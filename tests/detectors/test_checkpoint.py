"""Checkpoints load in full or not at all, and never run code."""

import logging
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from detectors.checkpoint import SafeCheckpointer, export_model
from tests.fresh import files_no_larger_than


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


@pytest.mark.parametrize("protocol", [2, 5])
def test_model_zoo_pickles_of_arrays_load(tmp_path: Path, protocol: int) -> None:
    model = make_model()
    weights = {name: np.full(t.shape, 0.5, np.float32) for name, t in model.state_dict().items()}
    path = tmp_path / "zoo.pkl"
    path.write_bytes(pickle.dumps({"model": weights, "__author__": "somebody"}, protocol))
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


def test_weights_that_cover_a_part_of_the_model_are_refused(tmp_path: Path) -> None:
    model = make_model()
    state = model.state_dict()
    del state["1.bias"]
    torch.save({"model": state | {"extra": torch.zeros(1)}}, tmp_path / "part.pth")
    with pytest.raises(ValueError, match=r"part\.pth: .* 1\.bias is missing; extra is unknown$"):
        SafeCheckpointer(model, strict=True).load(str(tmp_path / "part.pth"))


def test_weights_of_another_shape_are_refused_by_name(tmp_path: Path) -> None:
    state = make_model().state_dict()
    torch.save({"model": state | {"0.weight": torch.zeros(9, 2)}}, tmp_path / "shape.pth")
    message = r"do not fit the model: 0\.weight has shape \(9, 2\), not \(3, 2\)$"
    with pytest.raises(ValueError, match=message):
        SafeCheckpointer(make_model(), strict=True).load(str(tmp_path / "shape.pth"))


def test_training_may_start_from_a_part_of_the_weights(tmp_path: Path) -> None:
    model = make_model()
    torch.save({"model": {"0.weight": torch.ones(3, 2)}}, tmp_path / "backbone.pth")
    SafeCheckpointer(model).load(str(tmp_path / "backbone.pth"))
    assert (model[0].weight == 1).all()


def test_a_constant_of_the_config_in_an_older_checkpoint_must_be_the_same(tmp_path: Path) -> None:
    model = make_model()
    model.register_buffer("pixel_mean", torch.tensor([[[7.0]]]), persistent=False)
    state = make_model().state_dict()
    torch.save({"model": state | {"pixel_mean": torch.tensor([7.0])}}, tmp_path / "old.pth")
    SafeCheckpointer(model, strict=True).load(str(tmp_path / "old.pth"))
    torch.save({"model": state | {"pixel_mean": torch.tensor([8.0])}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: .*: pixel_mean is unknown$"):
        SafeCheckpointer(model, strict=True).load(str(tmp_path / "other.pth"))


@pytest.mark.parametrize("strict", [False, True])
def test_weights_of_another_architecture_are_never_ignored(tmp_path: Path, strict: bool) -> None:
    other = {"backbone.layer1.weight": torch.ones(3, 2), "bbox_head.bias": torch.ones(1)}
    torch.save({"meta": {"epoch": 12}, "state_dict": other}, tmp_path / "mmdet.pth")
    message = (
        r"mmdet\.pth: none of its 2 weights fits the model: it holds backbone\.layer1\.weight, "
        r"bbox_head\.bias, the model 0\.bias, 0\.weight, 1\.bias, and 1 more; convert the names"
    )
    with pytest.raises(ValueError, match=message):
        SafeCheckpointer(make_model(), strict=strict).load(str(tmp_path / "mmdet.pth"))


def saved(folder: Path, iteration: int, **content: Any) -> Path:
    """A checkpoint of training, as the trainer's hook writes it."""
    path = folder / f"model_{iteration:07d}.pth"
    torch.save({"model": make_model().state_dict(), "trainer": {}, **content}, path)
    (folder / "last_checkpoint").write_text(path.name)
    return path


def resume(folder: Path) -> dict[str, Any]:
    state = nn.Linear(1, 1)
    state.load_state_dict = lambda *_: None  # type: ignore[method-assign, assignment, return-value]
    checkpointer = SafeCheckpointer(make_model(), str(folder), trainer=state)
    return checkpointer.resume_or_load("", resume=True)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, "there is no such file of weights"),
        (lambda path: path.write_bytes(b""), "the file is empty"),
        (lambda path: path.write_bytes(path.read_bytes()[:-200]), "damaged or was cut short"),
        (lambda path: path.write_bytes(flipped(path.read_bytes())), "does not have its checksum"),
        (lambda path: torch.save({"model": make_model().state_dict()}, path), "weights alone"),
    ],
)
def test_the_checkpoint_before_a_damaged_one_is_named(
    tmp_path: Path, damage: Callable[[Path], Any], message: str
) -> None:
    saved(tmp_path, 9, mark="first")
    saved(tmp_path, 19, mark="second")
    saved(tmp_path, 29).write_bytes(b"damaged too")
    last = saved(tmp_path, 39)
    export_model(make_model(), tmp_path / "model_best.pth")
    damage(last)
    with pytest.raises(ValueError, match=f"{last}: .*{message}.*; the one before it is") as caught:
        resume(tmp_path)
    assert "\n" not in str(caught.value)
    assert "model_0000019.pth: to go on from there, write this name into" in str(caught.value)
    (tmp_path / "last_checkpoint").write_text("model_0000019.pth")
    assert resume(tmp_path)["mark"] == "second"


def test_a_run_that_is_killed_while_it_notes_a_checkpoint_has_the_note_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = SafeCheckpointer(make_model(), str(tmp_path))
    checkpointer.save("model_0000009")
    with monkeypatch.context() as killed:
        killed.setattr(Path, "replace", None)
        with pytest.raises(TypeError):
            checkpointer.save("model_0000019")
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000009.pth"
    checkpointer.save("model_0000029")
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000029.pth"


@pytest.mark.parametrize("room", [0, 1000])
def test_a_checkpoint_that_does_not_fit_leaves_the_one_of_its_name(
    tmp_path: Path, room: int
) -> None:
    checkpointer = SafeCheckpointer(make_model(), str(tmp_path))
    checkpointer.logger = logging.Logger("silent")  # pytest's file of the log would be full too
    checkpointer.save("model_final", iteration=9)
    with files_no_larger_than(room), pytest.raises((OSError, RuntimeError)):
        checkpointer.save("model_final", iteration=19)
    assert torch.load(tmp_path / "model_final.pth")["iteration"] == 9
    assert {one.name for one in tmp_path.iterdir()} == {"last_checkpoint", "model_final.pth"}


def test_the_run_of_another_model_or_command_is_not_resumed(tmp_path: Path) -> None:
    path = saved(tmp_path, 9)
    content = torch.load(path)
    name = next(iter(content["model"]))
    # An optimizer takes the state of tensors of other shapes, and computes beyond their ends.
    wider = {**content["model"], name: torch.cat([content["model"][name]] * 2)}
    torch.save({**content, "model": wider}, path)
    with pytest.raises(ValueError, match=f"has another model, so resume it as .*{name} has shape"):
        resume(tmp_path)
    lacking = {key: one for key, one in content["model"].items() if key != name}
    torch.save({**content, "model": lacking}, path)
    with pytest.raises(ValueError, match=f"has another model, .*{name} is missing"):
        resume(tmp_path)
    torch.save({**content, "methods": {}}, path)
    with pytest.raises(ValueError, match="begun by `python -m stage2_distill train`, not by `det"):
        resume(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"gone.pth"])
def test_a_note_that_names_no_checkpoint_never_begins_anew(tmp_path: Path, content: bytes) -> None:
    saved(tmp_path, 9)
    (tmp_path / "last_checkpoint").write_bytes(content)
    with pytest.raises(ValueError, match=r"; the one before it is model_0000009\.pth: to go on"):
        resume(tmp_path)
    (tmp_path / "model_0000009.pth").unlink()
    with pytest.raises(ValueError, match=r"; there is no whole one before it: start anew, without"):
        resume(tmp_path)


def test_a_checkpointer_loads_on_after_a_file_that_it_refused(tmp_path: Path) -> None:
    checkpointer = SafeCheckpointer(make_model(), strict=True)
    (tmp_path / "bad.pth").touch()
    with pytest.raises(ValueError, match="empty"):
        checkpointer.load(str(tmp_path / "bad.pth"))
    export_model(make_model(), tmp_path / "good.pth")
    checkpointer.load(str(tmp_path / "good.pth"))


def flipped(content: bytes) -> bytes:
    """One bit of the first tensor changed."""
    changed = bytearray(content)
    changed[content.index(make_model().state_dict()["0.weight"].numpy().tobytes()) + 2] ^= 4
    return bytes(changed)
