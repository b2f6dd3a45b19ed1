"""State that detectron2 leaves out of a checkpoint and that a resumed run needs all the same.

`RetinaNet.loss_normalizer` is a plain attribute, an average kept by each rank on its own; the
random number generators are per rank too. Both are gathered on every rank shortly before the main
rank writes the checkpoint. A run may be resumed by another number of ranks, if they share the same
total batch.
"""

from __future__ import annotations

import logging
import random
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn

logger = logging.getLogger(__name__)

# Of SOLVER: what the optimizer's and the scheduler's states hold, so that another value would be
# ignored by a resumed run.
_IN_STATES = (
    "OPTIMIZER", "BASE_LR", "MOMENTUM", "NESTEROV", "WEIGHT_DECAY", "WEIGHT_DECAY_NORM",
    "WEIGHT_DECAY_BIAS", "BIAS_LR_FACTOR",
)  # fmt: skip


class RankState(HookBase):
    """A hook that gathers, and a checkpointable that stores, what each rank keeps for itself.

    Register it before the checkpointing hook, on every rank.
    """

    def __init__(self, model: nn.Module, cfg: CfgNode, *, global_counts: bool) -> None:
        """Args:

        model: the detector that keeps `loss_normalizer`.
        cfg: of the run, fitted to its ranks; the solver's batch and checkpoint period act here.
        global_counts: whether `loss_normalizer` counts the objects of all ranks' images.
        """
        self._model = model
        self._batch = int(cfg.SOLVER.IMS_PER_BATCH)
        self._solver = {key: cfg.SOLVER[key] for key in (*_IN_STATES, "EMA_DECAY")}
        self._period = int(cfg.SOLVER.CHECKPOINT_PERIOD)
        self._scaled = bool(cfg.SOLVER.REFERENCE_WORLD_SIZE)
        self._global_counts = global_counts
        self._written_by = comm.get_world_size()
        self._ranks: list[dict[str, Any]] = []
        self._to_restore: dict[str, Any] | None = None

    def before_train(self) -> None:
        """Restore the generators last, after everything that draws from them while being built."""
        if self._to_restore is not None:
            _set_generators(self._to_restore)
        if self._written_by != comm.get_world_size() and comm.is_main_process():
            logger.warning(
                "the checkpoint was written by %d ranks and is resumed by %d: batch norm's "
                "statistics, running counts of objects and random states, which each rank keeps "
                "for itself, differ from those of an uninterrupted run",
                self._written_by, comm.get_world_size(),
            )  # fmt: skip

    def after_step(self) -> None:
        """Gather where the checkpointer is about to write."""
        if self.is_due(self.trainer.iter):
            self.gather()

    def is_due(self, iteration: int) -> bool:
        """Whether the checkpointer writes after this iteration."""
        return (iteration + 1) % self._period == 0 or iteration + 1 == self.trainer.max_iter

    def gather(self) -> None:
        """Collect the ranks' states for the checkpoint that is about to be written."""
        mine = {
            "loss_normalizer": getattr(self._model, "loss_normalizer", None),
            "generators": _get_generators(),
        }
        self._ranks = comm.gather(mine)

    def state_dict(self) -> dict[str, Any]:
        """The solver's settings, and the gathered states; none on ranks that do not write."""
        return {"ranks": self._ranks, "total_batch": self._batch, "solver": self._solver}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this rank's own part; with another number of ranks, what comes closest.

        Raises:
            ValueError: the checkpoint was written with another total batch, or with settings of
                the solver that would be ignored.
        """
        # A checkpoint of an earlier version does not say.
        batch = state.get("total_batch", self._batch)
        if batch != self._batch:
            hint = " (SOLVER.REFERENCE_WORLD_SIZE scales it to the ranks)" if self._scaled else ""
            raise ValueError(
                f"SOLVER.IMS_PER_BATCH{hint} is {self._batch}, but the run to resume had {batch}, "
                f"so that its steps would mean other images: resume with {batch}, or start anew "
                "from its weights (MODEL.WEIGHTS) in another OUTPUT_DIR"
            )
        self._require_solver(state.get("solver", {}))
        ranks, rank = state["ranks"], comm.get_rank()
        self._written_by = len(ranks)
        if rank < len(ranks):
            self._to_restore = ranks[rank]["generators"]
        normalizers = [one["loss_normalizer"] for one in ranks]
        if None not in normalizers:
            self._model.loss_normalizer = self._own(normalizers)

    def _require_solver(self, earlier: dict[str, Any]) -> None:
        for key, value in earlier.items():
            now = self._solver[key]
            # An average goes on with another decay, but it cannot begin, or end, half way.
            goes_on = bool(now) == bool(value) if key == "EMA_DECAY" else now == value
            if not goes_on:
                raise ValueError(
                    f"SOLVER.{key} is {now!r}, but the run to resume had {value!r} and goes on with"
                    f" that: resume with {value!r}, or start anew from its weights (MODEL.WEIGHTS)"
                    " in another OUTPUT_DIR"
                )

    def _own(self, normalizers: list[float]) -> Any:
        """This rank's `loss_normalizer`, of those that the ranks had."""
        if len(normalizers) == comm.get_world_size():
            return normalizers[comm.get_rank()]
        total = sum(normalizers)
        # An average count of objects of a rank's share of the batch, or of the whole batch.
        return total / (len(normalizers) if self._global_counts else comm.get_world_size())


def _get_generators() -> dict[str, Any]:
    """Generator states as tensors and numbers, which `torch.load(weights_only=True)` admits."""
    # The legacy generator is the one that detectron2 seeds and draws from.
    numpy_state: tuple[Any, ...] = np.random.get_state()  # type: ignore[assignment]  # noqa: NPY002
    name, keys, position, has_gauss, gauss = numpy_state
    state = {
        "python": random.getstate(),
        "numpy": [name, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, gauss],
        "torch": torch.get_rng_state(),
    }
    # Not where it is only available: asking would occupy a GPU beside a run on the CPU.
    if torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_generators(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
