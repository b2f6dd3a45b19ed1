"""Hooks beside detectron2's own: waiting time, averaged weights, the best checkpoint."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.utils.events import EventStorage, EventWriter, get_event_storage
from torch import nn

from storage.whole import write_whole

from .averaging import MovingAverage
from .checkpoint import export_model

logger = logging.getLogger(__name__)

WAITING = "waiting_share"
# detectron2's console and metrics show the last twenty steps too.
PRINTED_ITERS = 20
_TIMES = ("time", "data_time", "rank_data_time")


class WaitingShare(HookBase):
    """Logs which share of the last steps' time they waited for data, 0 to 1.

    Register it behind the IterationTimer.
    """

    def after_step(self) -> None:
        """Compare the two times that were logged for the same steps."""
        storage = self.trainer.storage
        histories = storage.histories()
        # The timer leaves out the first steps, and only the main rank logs the data's time.
        if "time" in histories and "data_time" in histories:
            count = min(PRINTED_ITERS, len(histories["time"].values()))
            share = histories["data_time"].avg(count) / histories["time"].avg(count)
            storage.put_scalar(WAITING, share, smoothing_hint=False)


class MetricsWindow(HookBase):
    """Keeps the steps over which metrics are smoothed, so that a resumed run smooths the same.

    A trainer's checkpoint holds it, as the state of any hook.
    """

    def __init__(self) -> None:
        self._to_restore: dict[str, list[list[float]]] = {}

    def before_train(self) -> None:
        """Put the window of the run that is resumed into the new storage."""
        histories = self.trainer.storage.histories()
        for name, window in self._to_restore.items():
            for value, iteration in window:
                histories[name].update(value, iteration)
        self._to_restore = {}

    def state_dict(self) -> dict[str, Any]:
        """Name to the last steps' (value, iteration); times are of a process, and left out."""
        storage = getattr(self.trainer, "storage", None)
        if storage is None:  # saved before training
            return {"window": {}}
        smoothed = storage.smoothing_hints()
        return {
            "window": {
                name: [list(one) for one in history.values()[-PRINTED_ITERS:]]
                for name, history in storage.histories().items()
                if smoothed.get(name) and name not in _TIMES
            }
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take what `state_dict` gave."""
        self._to_restore = state["window"]


class StepPrinter(EventWriter):
    """Adds to the console what detectron2's printer leaves out, over the same window."""

    def __init__(self, max_iter: int) -> None:
        self._max_iter = max_iter

    def write(self) -> None:
        """Print one line."""
        storage = get_event_storage()
        # Writers are called once more after the last step, which was printed already.
        parts = [] if storage.iter == self._max_iter else self.parts(storage)
        if parts:
            logger.info(" iter: %d  %s", storage.iter, "  ".join(parts))

    def parts(self, storage: EventStorage) -> list[str]:
        """What to print; subclasses add to it."""
        if WAITING not in storage.histories():
            return []
        return [f"waiting for data: {storage.histories()[WAITING].latest():.1%} of the time"]


class UpdateAverage(HookBase):
    """Lets the averaged weights follow the model after every step."""

    def __init__(self, average: MovingAverage, model: nn.Module) -> None:
        self._average = average
        self._model = model

    def after_step(self) -> None:
        """Take the new weights in."""
        self._average.update_parameters(self._model)


class KeepBest(hooks.BestCheckpointer):
    """Keeps the weights that evaluated best as `model_best.pth`, the figure in `model_best.json`.

    Unlike detectron2's own, it does not make a resumed run start from them, and a resumed run
    remembers how good they were.
    """

    def __init__(self, period: int, model: nn.Module, folder: Path, metric: str) -> None:
        """Args:

        period: iterations between evaluations.
        model: what is evaluated.
        folder: OUTPUT_DIR.
        metric: as evaluation logs it, such as `coco_2017_val/AP`; larger is better.
        """
        super().__init__(period, _WholeFiles(model, folder), metric)
        self._note = folder / "model_best.json"

    def before_train(self) -> None:
        """Remember, in a resumed run."""
        if self.trainer.start_iter > 0 and self._note.exists():
            note: dict[str, Any] = json.loads(self._note.read_text())
            # Of another metric, where DATASETS.TEST was changed, there is nothing to remember.
            if self._val_metric in note:
                self.best_metric, self.best_iter = note[self._val_metric], note["iteration"]

    def _best_checking(self) -> None:
        before = self.best_iter
        super()._best_checking()
        if self.best_iter != before:
            note = {self._val_metric: self.best_metric, "iteration": self.best_iter}
            write_whole(self._note, json.dumps(note) + "\n")


class _WholeFiles:
    """In place of a checkpointer: files that are whole or not there, and no `last_checkpoint`."""

    def __init__(self, model: nn.Module, folder: Path) -> None:
        self._model = model
        self._folder = folder

    def save(self, name: str, **others: Any) -> None:
        export_model(self._model, self._folder / f"{name}.pth", **others)
