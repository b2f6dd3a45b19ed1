"""Training on a GPU: what a CPU cannot show of precision, streams and several ranks."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp

from configs.loader import load_config
from detectors.packing import PackedBatch
from stage1_dump.dump import run as dump
from stage2_distill.prefetch import DeviceLoader
from tests.stage2_distill.conftest import Configure, write_student
from tests.stage2_distill.rank_process import RANKS, Runs, run_rank
from tests.stage2_distill.runs import GID_LOSSES, OWN_LOSSES, build, losses_of, train

pytestmark = pytest.mark.gpu

ON_GPU: dict[str, Any] = {"MODEL.DEVICE": "cuda", "SOLVER.BASE_LR": 0.001}


@pytest.fixture(scope="module")
def cache(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exact cache that a GPU wrote, one view in a forward."""
    target = tmp_path_factory.mktemp("gpu")
    path = write_student(
        folder, target, "exact", CACHE={"LOCATION": str(target / "cache")}, TEACHER={"BATCH": 1}
    )
    dump(load_config(str(path), ["MODEL.DEVICE", "cuda"]))
    return target / "cache"


@pytest.fixture(autouse=True)
def reproducible(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No sum depends on the order in which threads come: two runs can be compared."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # torchvision would compile its deterministic ROIAlign first, which takes longer than the runs.
    with torch.compiler.set_stance("force_eager"):
        yield
    torch.use_deterministic_algorithms(False)


def losses(path: Path, **overrides: Any) -> dict[str, list[float]]:
    """Train on the GPU; every loss of every step."""
    changed = {**ON_GPU, **overrides}
    return losses_of(train(path, *(part for pair in changed.items() for part in pair)))


def test_fifty_steps_from_an_exact_cache_are_those_under_the_live_teacher(
    configure: Configure, cache: Path
) -> None:
    nodes: dict[str, Any] = {"CACHE": {"LOCATION": str(cache)}, "SOLVER": {"MAX_ITER": 50}}
    cached, live = (
        losses(configure("exact", TEACHER={"SOURCE": source, "BATCH": 1}, **nodes))
        for source in ("cache", "live")
    )
    assert cached.keys() == live.keys() == OWN_LOSSES | GID_LOSSES
    for name, values in live.items():
        assert len(values) == 50
        np.testing.assert_allclose(cached[name], values, rtol=1e-4, atol=1e-6, err_msg=name)


def test_workers_pinned_memory_and_streams_change_nothing(
    configure: Configure, cache: Path
) -> None:
    nodes: dict[str, Any] = {"CACHE": {"LOCATION": str(cache)}, "SOLVER": {"MAX_ITER": 10}}
    alone, helped = (
        losses(
            configure("exact", DATALOADER={"NUM_WORKERS": workers}, TEACHER={"BATCH": 1}, **nodes)
        )
        for workers in (0, 2)
    )
    for name, values in alone.items():
        np.testing.assert_allclose(helped[name], values, rtol=1e-4, atol=1e-6, err_msg=name)


def test_batches_leave_the_loader_pinned_and_reach_the_step_on_the_gpu(
    configure: Configure, cache: Path
) -> None:
    path = configure("exact", CACHE={"LOCATION": str(cache)}, TEACHER={"BATCH": 1})
    trainer = build(path, "MODEL.DEVICE", "cuda", "DATALOADER.NUM_WORKERS", 2)
    loader = trainer.build_train_loader(trainer.cfg)
    assert isinstance(loader, DeviceLoader)
    host = next(iter(loader._loader))
    assert isinstance(host, PackedBatch) and host.memory.is_pinned()
    batch = next(iter(loader))
    for item, source in zip(batch, host.unpack(), strict=True):
        assert torch.equal(item["image"].cpu(), source["image"])
        for name, code in source["codes"].items():
            assert item["codes"][name].is_cuda
            assert torch.equal(item["codes"][name].cpu(), code), name


def run_rank_on_the_only_gpu(rank: int, *arguments: Any) -> None:
    """Both processes compute on GPU 0; gloo joins them, for NCCL wants a GPU for each."""
    with mock.patch("detectron2.utils.comm.get_local_rank", return_value=0):
        run_rank(rank, *arguments)


def test_two_ranks_on_one_gpu_train_one_student(folder: Path, cache: Path, tmp_path: Path) -> None:
    path = write_student(
        folder, tmp_path, "exact", CACHE={"LOCATION": str(cache)}, TEACHER={"BATCH": 1},
        SOLVER={"IMS_PER_BATCH": 4, "MAX_ITER": 3}, DATASETS={"TEST": []},
    )  # fmt: skip
    runs: Runs = {"both": (str(path), [part for pair in ON_GPU.items() for part in pair])}
    mp.spawn(
        run_rank_on_the_only_gpu,
        args=(str(tmp_path / "meeting"), runs, str(tmp_path)),
        nprocs=RANKS,
    )
    first, second = (torch.load(tmp_path / f"both.{rank}.pt") for rank in range(RANKS))
    assert first["mean"].keys() >= OWN_LOSSES | GID_LOSSES
    assert all(np.isfinite(values).all() for values in first["mean"].values())
    # Each saw images of its own, and both end with one student.
    assert first["own"][0] != second["own"][0]
    for name, weight in first["weights"].items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(weight.cpu(), second["weights"][name].cpu()), name
