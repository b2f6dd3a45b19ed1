"""Trains the runs of a sweep, as many at a time as there are slots."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from detectors.stopping import Interrupted, StopSignals
from storage.progress import Progress

from .plan import Run
from .slots import Slot
from .worker import Survivor, Worker, find_survivor, start, steps_of

_POLL_SEC = 0.2


class Schedule:
    """What is waiting, at work, finished and failed.

    Attributes:
        failures: of runs that failed, the last line that they said.
    """

    def __init__(
        self, runs: Sequence[Run], slots: Sequence[Slot], on_change: Callable[[Schedule], None]
    ) -> None:
        """Args:

        runs: in the order of training.
        slots: where they can be trained.
        on_change: called whenever a run has ended.
        """
        self.failures: dict[Run, str] = {}
        self._runs, self._slots = list(runs), list(slots)
        self._on_change = on_change
        self._working: list[Worker] = []
        self._waiting: list[Run] = []

    def state(self, run: Run) -> str:
        """`finished`, `failed`, `running` or `waiting`."""
        if run in self.failures:
            return "failed"
        if any(worker.run is run for worker in self._working):
            return "running"
        return "finished" if run.record() else "waiting"

    def train(self) -> None:
        """Train everything that is not finished; a run that fails stops no other.

        Raises:
            Interrupted: a signal came; the runs at work have saved their step, and ended.
        """
        steps = sum(run.steps for run in self._runs)
        with (
            StopSignals() as signals,
            Progress(
                "sweep", total=steps, unit="steps", start=self._steps(), count_done=self._steps
            ) as progress,
        ):
            signals.defer()
            try:
                self._find_work(progress)
                while self._waiting or self._working:
                    self._start(progress)
                    with signals.immediate():
                        time.sleep(_POLL_SEC)
                    self._collect(progress)
                    progress.update()
            except Interrupted as error:
                number = len(self._working)
                self._stop(progress)
                raise Interrupted(
                    error.number, f"{number} runs were stopped; the same command goes on with them"
                ) from None
            except Exception:
                self._stop(progress)
                raise

    def _steps(self) -> int:
        return sum(
            run.steps if self.state(run) in ("finished", "failed") else steps_of(run)
            for run in self._runs
        )

    def _find_work(self, progress: Progress) -> None:
        for run in self._runs:
            survivor = find_survivor(run, self._slots)
            if survivor:
                progress.say(
                    f"{run.name}: a training of an earlier sweep is still at work "
                    f"({run.folder}, process {survivor.pid or 'unknown'}): waiting for it"
                )
                self._working.append(survivor)
            elif run.record():
                progress.say(f"{run.name}: is finished already{_ap(run)}")
            else:
                self._waiting.append(run)

    def _start(self, progress: Progress) -> None:
        taken = [worker.slot for worker in self._working]
        free = [slot for slot in self._slots if slot not in taken]
        # Those whose slot is not known, or gone, take one as well.
        free = free[: max(0, len(self._slots) - len(self._working))]
        for slot in free[: len(self._waiting)]:
            run = self._waiting.pop(0)
            verb = "goes on" if run.is_begun else "begins"
            self._working.append(start(run, slot))
            progress.say(f"{run.name}: {verb} ({slot.name}, {run.folder})")

    def _collect(self, progress: Progress) -> None:
        ended = [worker for worker in self._working if not worker.is_alive()]
        for worker in ended:
            run = worker.run
            self._working.remove(worker)
            if run.record():
                progress.say(f"{run.name}: finished{_ap(run)}")
            elif isinstance(worker, Survivor):
                self._waiting.insert(0, run)
            else:
                self.failures[run] = worker.failure or "it ended without a result"
                progress.say(f"{run.name}: FAILED: {self.failures[run]} (log in {run.folder})")
            self._on_change(self)

    def _stop(self, progress: Progress) -> None:
        """End what is at work: after its step, or at once if a second signal comes."""
        progress.say(f"stopping {len(self._working)} runs after their step")
        try:
            for worker in self._working:
                worker.stop()
            for worker in self._working:
                worker.wait()
        except Interrupted:
            for worker in self._working:
                worker.kill()
            raise
        finally:
            self._working = []


def _ap(run: Run) -> str:
    record = run.record()
    results = record.results if record else None
    return "".join(f", {name}: AP {found['AP']:.2f}" for name, found in (results or {}).items())
