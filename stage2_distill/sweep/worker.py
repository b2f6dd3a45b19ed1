"""A run at work: a child process, or one that an earlier sweep left behind.

Whoever trains in a folder holds a lock on a file in it for as long as any of its processes lives,
however the sweep that started it ended. So no two ever write into one folder.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from detectors.run_record import CONFIG_NAME
from storage.whole import write_whole

from .plan import Run
from .slots import Slot

LOG_NAME = "console.log"
_LOCK_NAME = "running.lock"
_TAIL_BYTES = 65536
# What a command that ends with an exit code of its own says last.
_LAST_WORDS = ("error: ", "interrupted")
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class Child:
    """A training that this sweep has started, in a session of its own: a signal from a terminal
    reaches the sweep alone, which passes it on.
    """

    def __init__(self, run: Run, slot: Slot, lock: int) -> None:
        """Start it; args: what to train, where, and the lock of its folder, which goes to it."""
        self.run, self.slot = run, slot
        resume = ["--resume"] if run.is_begun else []
        path = run.folder / CONFIG_NAME
        write_whole(path, run.cfg.dump())
        command = [sys.executable, "-m", "stage2_distill", "train", *resume]
        command += ["--config-file", str(path)]
        with open(run.folder / LOG_NAME, "a") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={**os.environ, **slot.environment},
                pass_fds=(lock,),
                start_new_session=True,
            )
        os.write(lock, json.dumps({"pid": self._process.pid, "slot": slot.name}).encode())
        os.close(lock)

    def is_alive(self) -> bool:
        """Whether it is at work."""
        return self._process.poll() is None

    @property
    def failure(self) -> str:
        """Why it failed, as its log ends; "" if it did not."""
        code = self._process.returncode
        if code == 0:
            return ""
        text = _COLOURS.sub("", _tail(self.run.folder / LOG_NAME))
        *_, last = ["its log is empty", *filter(str.strip, text.splitlines())]
        if last.startswith(_LAST_WORDS):
            return last
        how = f"exit code {code}" if code > 0 else f"ended by {signal.Signals(-code).name}"
        return f"{how}, its log ends with: {last.strip()}"

    def stop(self) -> None:
        """Ask it to end after its step, which it saves."""
        self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once, its own children too."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def wait(self) -> None:
        """Return when it has ended."""
        self._process.wait()


class Survivor:
    """A training of an earlier sweep that was killed itself, and is waited for."""

    failure = ""

    def __init__(self, run: Run, note: dict[str, Any], slots: list[Slot]) -> None:
        """Args: what it trains, what its lock says of it, and the slots: it may be in one."""
        self.run = run
        self.pid: int | None = note.get("pid")
        self.slot = next((one for one in slots if one.name == note.get("slot")), None)

    def is_alive(self) -> bool:
        """Whether it is at work."""
        return _is_locked(self.run.folder)

    def stop(self) -> None:
        """Ask it to end after its step, which it saves."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        self._send(signal.SIGKILL)

    def wait(self) -> None:
        """Return when it has ended."""
        with open(self.run.folder / _LOCK_NAME) as file:
            fcntl.flock(file, fcntl.LOCK_EX)

    def _send(self, number: signal.Signals) -> None:
        # Locked, so that the number is still that of the process which wrote it.
        if self.pid is not None and self.is_alive():
            with suppress(ProcessLookupError):
                os.kill(self.pid, number)


Worker = Child | Survivor


def start(run: Run, slot: Slot) -> Child:
    """Start or resume a run whose folder nobody works in."""
    run.folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(run.folder / _LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return Child(run, slot, lock)


def find_survivor(run: Run, slots: list[Slot]) -> Survivor | None:
    """The process of an earlier sweep that works at a run; None where there is none."""
    return Survivor(run, _note(run.folder), slots) if _is_locked(run.folder) else None


def refuse_strays(output: Path, runs: Iterable[Run]) -> None:
    """See that nothing is at work in the folder of a sweep that it has no use for any more.

    Raises:
        ValueError: a training of an earlier sweep, with other rows or seeds, is.
    """
    ours = {run.folder for run in runs}
    for lock in sorted(output.glob(f"*/*/{_LOCK_NAME}")):
        if lock.parent not in ours and _is_locked(lock.parent):
            raise ValueError(
                f"{lock.parent}: a training of an earlier sweep is still at work there (process "
                f"{_note(lock.parent).get('pid', 'unknown')}), which is none of this one; wait for "
                "it, or end it"
            )


@contextmanager
def only_sweep(output: Path) -> Iterator[None]:
    """Keep a second sweep out of the folder; the lock ends with the process.

    Raises:
        ValueError: there is another one.
    """
    output.mkdir(parents=True, exist_ok=True)
    with open(output / "sweep.lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{output}: another sweep is at work in this folder; wait for it, or name another "
                "--output"
            ) from None
        yield


def steps_of(run: Run) -> int:
    """How many steps a run has logged so far."""
    for line in reversed(_tail(run.folder / "metrics.json").splitlines()):
        with suppress(ValueError, KeyError):  # a line that is being written
            return min(int(json.loads(line)["iteration"]) + 1, run.steps)
    return 0


def _is_locked(folder: Path) -> bool:
    if not (folder / _LOCK_NAME).exists():
        return False
    with open(folder / _LOCK_NAME) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _note(folder: Path) -> dict[str, Any]:
    """What a worker left in its lock: `pid` and `slot`; nothing if it was killed before."""
    with suppress(ValueError):
        content: dict[str, Any] = json.loads((folder / _LOCK_NAME).read_text())
        return content
    return {}


def _tail(path: Path) -> str:
    if not path.exists():
        return ""
    with open(path, "rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        return file.read().decode(errors="replace")
