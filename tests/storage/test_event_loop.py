"""The end of a process that used an object store: no thread of the client may come back after."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from storage import event_loop
from tests.storage.cases import clock

_INTERRUPTED = """
import signal, sys
from storage.location import Location

place = Location(sys.argv[1])
place.put("a", b"1")
signal.signal(signal.SIGALRM, lambda *_: sys.exit(0))
signal.setitimer(signal.ITIMER_REAL, 0.03)
while True:
    place.get_many(["a"] * 32)
"""


_WAITING = """
import asyncio, threading
from storage import event_loop

async def wait_for_ever():
    started.set()
    await asyncio.Event().wait()

started = threading.Event()
threading.Thread(target=lambda: event_loop.run(wait_for_ever()), daemon=True).start()
started.wait()
"""


@pytest.fixture(autouse=True)
def not_settling(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process goes on."""
    monkeypatch.setattr(event_loop, "_is_settling", False)


@pytest.fixture
def slow_call(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Thread, threading.Event]:
    """A thread that has woken the loop, and does not come back before the event is set."""
    event_loop.run(asyncio.sleep(0))
    loop = event_loop._loop
    assert loop is not None
    wake, woken, back = loop._write_to_self, threading.Event(), threading.Event()  # type: ignore[attr-defined]

    def wake_slowly() -> None:
        wake()
        if threading.current_thread() is thread:
            woken.set()
            back.wait()

    monkeypatch.setattr(loop, "_write_to_self", wake_slowly)
    thread = threading.Thread(target=loop.call_soon_threadsafe, args=(lambda: None,))
    thread.start()
    woken.wait()
    return thread, back


def test_the_end_waits_for_a_call_of_another_thread(
    slow_call: tuple[threading.Thread, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    thread, back = slow_call
    looks: list[float] = []

    def come_back_at_the_third_look(now: float) -> None:
        looks.append(now)
        if len(looks) == 3:
            back.set()
            thread.join()

    monkeypatch.setattr(event_loop, "time", clock(come_back_at_the_third_look))
    event_loop._settle()
    assert len(looks) == 4  # and once more for what was cancelled
    assert not thread.is_alive()


def test_the_end_does_not_wait_for_ever(
    slow_call: tuple[threading.Thread, threading.Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    thread, back = slow_call
    ends: list[float] = []
    monkeypatch.setattr(event_loop, "time", clock(ends.append))
    event_loop._settle()
    assert 5.0 <= ends[-1] < 5.1
    assert thread.is_alive()
    back.set()
    thread.join()


def test_the_end_gives_up_what_is_under_way() -> None:
    started, ended = threading.Event(), threading.Event()

    async def wait_for_ever() -> None:
        started.set()
        await asyncio.Event().wait()

    def ask() -> None:
        with pytest.raises(SystemExit):
            event_loop.run(wait_for_ever())
        ended.set()

    threading.Thread(target=ask, daemon=True).start()
    assert started.wait(10)
    event_loop._settle()
    assert ended.wait(10)


def test_a_daemon_thread_that_waits_at_the_end_says_nothing() -> None:
    done = subprocess.run([sys.executable, "-c", _WAITING], capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.s3
def test_a_process_that_ends_amid_requests_ends_in_order(s3_bucket: str) -> None:
    command = [sys.executable, "-c", _INTERRUPTED, f"{s3_bucket}/ending"]
    assert [subprocess.run(command).returncode for _ in range(8)] == [0] * 8  # else SIGABRT
