"""The student's mixed precision: every preset under both types, on any device."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from configs.loader import load_config
from detectors.loop import AMP_DTYPES
from stage1_dump.dump import run as dump
from stage2_distill.teacher import CachedTeacher
from stage2_distill.teacher_batch import TeacherBatch
from tests.stage2_distill.conftest import Configure, write_student
from tests.stage2_distill.runs import GID_LOSSES, OWN_LOSSES, losses_of, train

PRESETS: dict[str, dict[str, Any]] = {
    "exact": {"PRESET": "exact"},
    "exact_half": {"PRESET": "exact", "DTYPE": "float16"},
    "balanced": {"PRESET": "balanced"},
    "compact": {"PRESET": "compact"},
}
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(scope="module")
def caches(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Those that the shared folder lacks."""
    target = tmp_path_factory.mktemp("caches")
    for name in ("exact_half", "compact"):
        cache = {**PRESETS[name], "LOCATION": str(target / name)}
        dump(load_config(str(write_student(folder, target, "exact", CACHE=cache))))
    return target


def configured(configure: Configure, folder: Path, caches: Path, name: str) -> Path:
    at = folder if (folder / name).exists() else caches
    return configure("exact", CACHE={**PRESETS[name], "LOCATION": str(at / name)})


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("half", AMP_DTYPES)
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_close_to_full_precision(
    configure: Configure,
    folder: Path,
    caches: Path,
    name: str,
    half: str,
    device: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = configured(configure, folder, caches, name)
    seen: list[TeacherBatch] = []
    outputs = CachedTeacher.outputs

    def spy(self: CachedTeacher, *args: Any) -> TeacherBatch:
        seen.append(outputs(self, *args))
        return seen[-1]

    monkeypatch.setattr(CachedTeacher, "outputs", spy)
    step = ("SOLVER.MAX_ITER", 1, "MODEL.DEVICE", device, "DATASETS.TEST", "()")
    full = losses_of(train(path, *step))
    mixed = losses_of(train(path, *step, "SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", half))
    # What the teacher says is the same to the last bit; it is the student who rounds.
    for one, other in zip(seen[0].features, seen[1].features, strict=True):
        assert torch.equal(one, other)
    assert torch.equal(seen[0].probabilities, seen[1].probabilities)
    assert mixed.keys() == full.keys() == OWN_LOSSES | GID_LOSSES
    for loss, values in full.items():
        # A GI or two of this untrained student are others.
        assert mixed[loss] != values, loss
        assert mixed[loss] == pytest.approx(values, rel=0.25), loss


def test_another_type_is_refused(configure: Configure) -> None:
    with pytest.raises(ValueError, match=r"SOLVER.AMP.DTYPE: expected one of float16, bfloat16"):
        train(configure(), "SOLVER.AMP.DTYPE", "float32")
