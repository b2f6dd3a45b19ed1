"""Processes that share state: same results however many there are, and no hang when one dies."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

import pytest

from storage import CacheError
from storage.workers import _may_fork, mapped


def multiply(state: int, task: int) -> int:
    return state * task


def tell_process(_: int, __: int) -> int:
    return os.getpid()


def die(_: int, task: int) -> int:
    if task == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return task


def fail(_: int, task: int) -> int:
    raise ValueError(f"task {task}")


def fill_the_disk(_: int, __: int) -> int:
    raise OSError(errno.ENOSPC, "No space left on device", "a")


def tell_process_and_wait(_: int, task: int) -> None:
    """Print the process, and never come back from the first task."""
    os.write(1, f"{os.getpid()}\n".encode())  # in one piece: two processes share the pipe
    if task == 0:
        threading.Event().wait()


_PARENT = """
import sys
import storage.workers
from tests.storage.test_workers import tell_process_and_wait
storage.workers._may_fork = lambda: sys.argv[1] == "forked"
with storage.workers.mapped(tell_process_and_wait, 0, range(2), workers=2) as results:
    list(results)
"""


@pytest.fixture(params=["forked", "spawned"])
def _start(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.workers._may_fork", lambda: request.param == "forked")


@pytest.mark.usefixtures("_start")
def test_results_come_in_the_order_of_the_tasks() -> None:
    with mapped(multiply, 3, range(20), workers=2) as results:
        assert list(results) == [3 * task for task in range(20)]
    with mapped(tell_process, 0, range(4), workers=2) as results:
        assert os.getpid() not in results


def test_one_worker_is_this_process() -> None:
    with mapped(tell_process, 0, [1], workers=1) as results:
        assert list(results) == [os.getpid()]


@pytest.mark.usefixtures("_start")
def test_a_process_that_dies_is_an_error_and_no_hang() -> None:
    with (
        pytest.raises(CacheError, match=r"one of 2 processes died .* --workers 1"),
        mapped(die, 0, range(8), workers=2) as results,
    ):
        list(results)


@pytest.mark.parametrize("start", ["forked", "spawned"])
def test_processes_end_with_a_parent_that_is_killed(start: str) -> None:
    command = [sys.executable, "-c", _PARENT, start]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = [int(parent.stdout.readline()) for _ in range(2)]  # one at work, one without
    parent.kill()
    try:
        parent.communicate(timeout=60)  # the pipe ends with the last process that has it
    except subprocess.TimeoutExpired:
        for child in children:
            with suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
        raise


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
@pytest.mark.parametrize("started", [0, 1])
def test_threads_that_cannot_be_started_are_an_error_and_no_hang(
    started: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.workers._LOOK_EVERY_SEC", 0.1)
    left, start = [started], threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if not left[0]:
            raise RuntimeError("can't start new thread")
        left[0] -= 1
        start(self)

    with (
        pytest.raises(CacheError, match=r"2 processes cannot be started: no thread .* --workers 1"),
        monkeypatch.context() as patch,
    ):
        patch.setattr(threading.Thread, "start", refuse)
        with mapped(multiply, 3, range(8), workers=2) as results:
            list(results)


def test_processes_that_cannot_be_started_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    monkeypatch.setattr("storage.workers._may_fork", lambda: True)
    monkeypatch.setattr(os, "fork", refuse)
    with (
        pytest.raises(CacheError, match="2 processes cannot be started: no thread or process"),
        mapped(multiply, 3, range(8), workers=2) as results,
    ):
        list(results)


def test_an_error_in_a_process_comes_out_here() -> None:
    with (
        pytest.raises(ValueError, match="task 0"),
        mapped(fail, 0, range(8), workers=2) as results,
    ):
        list(results)


def test_so_does_one_that_could_be_of_the_processes() -> None:
    with (
        pytest.raises(OSError, match=r"No space left on device: 'a'$"),
        mapped(fill_the_disk, 0, range(8), workers=2) as results,
    ):
        list(results)


def test_nothing_is_forked_beside_a_busy_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delitem(sys.modules, "obstore", raising=False)
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.current_thread()])
    assert _may_fork()
    busy = threading.Thread(name="somebody's")
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.current_thread(), busy])
    assert not _may_fork()
