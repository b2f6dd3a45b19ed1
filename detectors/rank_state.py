"""State that detectron2 leaves out of a checkpoint and that a resumed run needs all the same.

`RetinaNet.loss_normalizer` is a plain attribute, an average kept by each rank on its own; the
random number generators are per rank too. Both are gathered on every rank shortly before the main
rank writes the checkpoint.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
from detectron2.engine import HookBase
from detectron2.utils import comm
from torch import nn


class RankState(HookBase):
    """A hook that gathers, and a checkpointable that stores, what each rank keeps for itself.

    Register it before the checkpointing hook, on every rank.
    """

    def __init__(self, model: nn.Module, period: int) -> None:
        """Args:

        model: the detector that keeps `loss_normalizer`.
        period: iterations between checkpoints.
        """
        self._model = model
        self._period = period
        self._ranks: list[dict[str, Any]] = []
        self._to_restore: dict[str, Any] | None = None

    def before_train(self) -> None:
        """Restore the generators last, after everything that draws from them while being built."""
        if self._to_restore is not None:
            _set_generators(self._to_restore)

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
        """The gathered states; empty on ranks that do not write."""
        return {"ranks": self._ranks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take this rank's own part.

        Raises:
            ValueError: the checkpoint was written by another number of ranks.
        """
        ranks = state["ranks"]
        if len(ranks) != comm.get_world_size():
            raise ValueError(
                f"the checkpoint was written by {len(ranks)} ranks and is resumed by "
                f"{comm.get_world_size()}; resume with as many, or start anew from its weights "
                "(MODEL.WEIGHTS)"
            )
        mine = ranks[comm.get_rank()]
        if mine["loss_normalizer"] is not None:
            self._model.loss_normalizer = mine["loss_normalizer"]
        self._to_restore = mine["generators"]


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
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def _set_generators(state: dict[str, Any]) -> None:
    random.setstate(state["python"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))  # noqa: NPY002
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
