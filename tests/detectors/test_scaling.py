"""SOLVER.REFERENCE_WORLD_SIZE: a config written for other ranks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from detectron2.config import CfgNode

from configs.loader import load_config
from detectors import scaling
from detectors.scaling import fitted_to_ranks


def config(tmp_path: Path, *overrides: Any) -> CfgNode:
    path = tmp_path / "c.yaml"
    path.write_text("VERSION: 2\nMODEL: {DEVICE: cpu}\n")
    stated = (
        "SOLVER.IMS_PER_BATCH", 8, "SOLVER.BASE_LR", 0.01, "SOLVER.MAX_ITER", 100,
        "SOLVER.STEPS", "(60, 80)", "SOLVER.WARMUP_ITERS", 10, "SOLVER.CHECKPOINT_PERIOD", 20,
        "TEST.EVAL_PERIOD", 50, "DISTILL.WARMUP_ITERS", 40, "SOLVER.REFERENCE_WORLD_SIZE", 4,
        "VIEWS.LAST", "(0,)", "VIEWS.LAST_ITERS", 20, "FRS.RAMP_ITERS", 48,
    )  # fmt: skip
    cfg = load_config(str(path), [str(x) for x in (*stated, *overrides)])
    cfg.freeze()
    return cfg


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> Any:
    return lambda count: monkeypatch.setattr(scaling.comm, "get_world_size", lambda: count)


@pytest.mark.parametrize(("count", "factor"), [(1, 0.25), (2, 0.5), (4, 1), (8, 2)])
def test_batch_and_rate_follow_the_ranks_and_steps_go_against_them(
    tmp_path: Path, ranks: Any, count: int, factor: float
) -> None:
    ranks(count)
    stated = config(tmp_path)
    cfg = fitted_to_ranks(stated)
    solver = cfg.SOLVER
    assert (8 * factor, 0.01 * factor) == (solver.IMS_PER_BATCH, solver.BASE_LR)
    assert (100 / factor, (60 / factor, 80 / factor)) == (solver.MAX_ITER, solver.STEPS)
    assert (10 / factor, 20 / factor) == (solver.WARMUP_ITERS, solver.CHECKPOINT_PERIOD)
    assert (50 / factor, 40 / factor) == (cfg.TEST.EVAL_PERIOD, cfg.DISTILL.WARMUP_ITERS)
    assert (20 / factor, 48 / factor) == (cfg.VIEWS.LAST_ITERS, cfg.FRS.RAMP_ITERS)
    assert cfg.is_frozen() and (stated.SOLVER.IMS_PER_BATCH, stated.DISTILL.WARMUP_ITERS) == (8, 40)
    assert fitted_to_ranks(cfg) == cfg


def test_nothing_changes_without_a_reference(tmp_path: Path, ranks: Any) -> None:
    ranks(2)
    cfg = config(tmp_path, "SOLVER.REFERENCE_WORLD_SIZE", 0)
    assert fitted_to_ranks(cfg) is cfg


def test_many_ranks_turn_nothing_off(tmp_path: Path, ranks: Any) -> None:
    ranks(64)
    short = ("SOLVER.CHECKPOINT_PERIOD", 2, "TEST.EVAL_PERIOD", 3, "SOLVER.MAX_ITER", 4)
    cfg = fitted_to_ranks(config(tmp_path, *short, "DISTILL.WARMUP_ITERS", 1))
    assert cfg.SOLVER.CHECKPOINT_PERIOD == cfg.TEST.EVAL_PERIOD == cfg.DISTILL.WARMUP_ITERS == 1
    off = fitted_to_ranks(config(tmp_path, "TEST.EVAL_PERIOD", 0, "DISTILL.WARMUP_ITERS", 0))
    assert off.TEST.EVAL_PERIOD == off.DISTILL.WARMUP_ITERS == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["SOLVER.IMS_PER_BATCH", 6], "multiple of SOLVER.REFERENCE_WORLD_SIZE 4"),
        (["SOLVER.ACCUMULATE", 4], "IMS_PER_BATCH is 4; expected a multiple of the 2 ranks times"),
    ],
)
def test_what_cannot_be_scaled_is_named(
    tmp_path: Path, ranks: Any, overrides: list[Any], message: str
) -> None:
    ranks(2)
    with pytest.raises(ValueError, match=message):
        fitted_to_ranks(config(tmp_path, *overrides))


def test_arithmetic_that_the_gpu_lacks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scaling.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(scaling.torch.cuda, "is_bf16_supported", lambda: False)
    monkeypatch.setattr(scaling.torch.cuda, "get_device_name", lambda: "GeForce")
    keys = ("MODEL.DEVICE", "cuda", "SOLVER.AMP.DTYPE", "bfloat16", "SOLVER.AMP.ENABLED")
    fitted_to_ranks(config(tmp_path, *keys, False))
    with pytest.raises(ValueError, match="bfloat16: GeForce has no such arithmetic"):
        fitted_to_ranks(config(tmp_path, *keys, True))
