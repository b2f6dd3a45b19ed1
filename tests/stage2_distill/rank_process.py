"""What one of two real processes does in the tests of distributed training."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm

from tests.stage2_distill.runs import build

RANKS = 2
# Runs that one pair of processes makes, one after the other: starting a pair takes seconds.
Runs = dict[str, tuple[str, list[Any]]]


def run_rank(rank: int, meeting: str, runs: Runs, folder: str) -> None:
    """Join the other process over gloo, train every run, and leave `NAME.RANK.pt`.

    Args:
        rank: number of this process.
        meeting: file through which the processes find each other.
        runs: name to config file and overrides.
        folder: where results go.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=RANKS)
    comm.create_local_process_group(RANKS)
    for name, (path, overrides) in runs.items():
        torch.save(
            _run(path, overrides, fails=name.startswith("fails")), f"{folder}/{name}.{rank}.pt"
        )
        dist.barrier()
    dist.destroy_process_group()


def _run(path: str, overrides: list[Any], *, fails: bool) -> dict[str, Any]:
    """Losses of this rank and the mean of both; or the error, where rank 1 cannot read."""
    trainer = build(Path(path), *overrides)
    trainer.resume_or_load(resume=False)
    own: list[dict[str, float]] = []
    checked = trainer._trainer._checked

    def spy(losses: dict[str, torch.Tensor], *rest: Any) -> Any:
        own.append({name: loss.item() for name, loss in losses.items()})
        return checked(losses, *rest)

    trainer._trainer._checked = spy  # type: ignore[method-assign]
    if fails and comm.get_rank() == 1:
        _break_after(trainer, 3)
    error = ""
    try:
        trainer.train()
    except Exception as caught:
        if not fails:
            raise
        error = f"{type(caught).__name__}: {caught}"
    histories = trainer.storage.histories()
    return {
        "own": own,
        "mean": {k: [v for v, _ in histories[k].values()] for k in histories if "loss_" in k},
        "weights": trainer.detector.state_dict(),
        "error": error,
    }


def _break_after(trainer: Any, batches: int) -> None:
    """Let the loader of this rank fail as a damaged cache does."""

    def broken() -> Any:
        for number, batch in enumerate(loader):
            if number == batches:
                raise OSError("shard 0064x0064/00001 is damaged")
            yield batch

    loader = trainer._trainer.data_loader
    trainer._trainer.data_loader = broken()
