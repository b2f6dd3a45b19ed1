"""What one of two real processes does in the tests of distributed training."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm

from tests.stage2_distill.runs import build

RANKS = 2
# Runs that one pair of processes makes, one after the other: starting a pair takes seconds.
Runs = dict[str, tuple[str, list[Any]]]
Break = Callable[[Any], None]


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
        torch.save(_run(path, overrides, BREAKS.get(name)), f"{folder}/{name}.{rank}.pt")
        dist.barrier()
    dist.destroy_process_group()


def _run(path: str, overrides: list[Any], break_it: Break | None) -> dict[str, Any]:
    """Losses of this rank and the mean of both; and the error, where rank 1 breaks."""
    trainer = build(Path(path), *overrides)
    trainer.resume_or_load(resume=False)
    own: list[dict[str, float]] = []
    checked = trainer._trainer._checked

    def spy(losses: dict[str, torch.Tensor], *rest: Any, **options: Any) -> Any:
        own.append({name: loss.item() for name, loss in losses.items()})
        return checked(losses, *rest, **options)

    trainer._trainer._checked = spy  # type: ignore[method-assign]
    if break_it and comm.get_rank() == 1:
        break_it(trainer)
    error, start = "", time.monotonic()
    try:
        trainer.train()
    except Exception as caught:
        if not break_it:
            raise
        error = f"{type(caught).__name__}: {caught}"
    histories = trainer.storage.histories()
    return {
        "own": own,
        "mean": {k: [v for v, _ in histories[k].values()] for k in histories if "loss_" in k},
        "weights": trainer.detector.state_dict(),
        "error": error,
        "seconds": time.monotonic() - start,
    }


def _break_loader(trainer: Any) -> None:
    """Let the loader of this rank fail as a damaged cache does."""

    def broken() -> Any:
        for number, batch in enumerate(loader):
            if number == 3:
                raise OSError("shard 0064x0064/00001 is damaged")
            yield batch

    loader = trainer._trainer.data_loader
    trainer._trainer.data_loader = broken()


def _break_losses(trainer: Any) -> None:
    """Let a loss of this rank become NaN."""
    (method,) = trainer.distiller.methods
    forward = method.forward

    def broken(*args: Any) -> Any:
        factor = float("nan") if trainer.iter == 2 else 1.0
        return {name: loss * factor for name, loss in forward(*args).items()}

    method.forward = broken


def _break_terms(trainer: Any) -> None:
    """Let this rank give a term less than the other, as a method without objects may."""
    (method,) = trainer.distiller.methods
    forward = method.forward

    def broken(*args: Any) -> Any:
        terms = forward(*args)
        if trainer.iter == 2:
            del terms["relation"]
        return terms

    method.forward = broken


def _break_teacher(trainer: Any) -> None:
    """Let the teacher's probabilities become infinite: found amid the forward pass."""
    source = trainer.distiller._source
    outputs = source.outputs

    def broken(*args: Any) -> Any:
        batch = outputs(*args)
        if trainer.iter == 2:
            batch.deltas[:] = float("inf")
        return batch

    source.outputs = broken


BREAKS: dict[str, Break] = {
    "fails": _break_loader, "diverges": _break_losses, "differs": _break_terms,
    "infinite": _break_teacher, "infinite_in_parts": _break_teacher,
}  # fmt: skip
