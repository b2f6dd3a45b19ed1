"""Early stopping: a training ends when its evaluations stop getting better (`TEST.PATIENCE`)."""

from __future__ import annotations

from typing import Any

from detectron2.engine import HookBase
from detectron2.utils import comm


class TrainingEnded(BaseException):
    """Ends the loop of a training that is done before its last iteration.

    No `Exception`: detectron2 would log it as a failure.
    """


class Patience(HookBase):
    """Counts the evaluations in a row that were not better than the best one before.

    Register it behind the evaluation, on every rank. A checkpoint holds what it counted, so that a
    run that ended early is not gone on with, unless with more patience.
    """

    def __init__(self, period: int, patience: float, metric: str) -> None:
        """Args:

        period: iterations between evaluations.
        patience: evaluations in a row without a better value that end the training; infinity:
            none do.
        metric: as evaluation logs it on the main rank, such as `coco_2017_val/AP`; larger is
            better.
        """
        self._period = period
        self._patience = patience
        self._metric = metric
        self._best: float | None = None
        self._stale = 0
        self._seen = 0

    @property
    def is_over(self) -> bool:
        """Whether the training has to end, the same on all ranks."""
        return self._stale >= self._patience

    @property
    def reason(self) -> str:
        """Why, for the log."""
        return (
            f"{self._metric} was not better than {self._best:.2f} in {self._stale} evaluations in "
            f"a row (TEST.PATIENCE {self._patience})"
        )

    def lacks(self, step: int) -> bool:
        """Whether there should have been an evaluation after so many steps that was not counted:
        checkpoints are written before it.
        """
        return step % self._period == 0 and self._seen < step

    def count(self, step: int, value: float | None) -> None:
        """Take in the evaluation after so many steps; only the main rank has its value."""
        if value is not None:
            is_better = self._best is None or value > self._best
            self._stale = 0 if is_better else self._stale + 1
            self._best = value if is_better else self._best
        self._best, self._stale = comm.all_gather((self._best, self._stale))[0]
        self._seen = step

    def after_step(self) -> None:
        """Look at what was evaluated after this step, if anything was."""
        step = self.trainer.iter + 1
        # The evaluation of the last step is still to come, and ends nothing.
        if self.lacks(step) and step != self.trainer.max_iter:
            found = self.trainer.storage.latest().get(self._metric, (None,))
            self.count(step, found[0])

    def state_dict(self) -> dict[str, Any]:
        """Best value, the evaluations since, and the number of steps before the last one."""
        return {"best": self._best, "stale": self._stale, "seen": self._seen}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        self._best, self._stale, self._seen = state["best"], state["stale"], state["seen"]
