"""Progress: a line every half minute without a terminal, a bar on one."""

from __future__ import annotations

import io
import sys
import threading

import pytest

from storage import progress as module
from storage.progress import Progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds since the epoch of the test, in a list to change."""
    now = [100.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])
    return now


def test_a_line_says_phase_done_of_all_rate_and_time_left_every_half_minute(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("dump", total=118_287, unit="records") as progress:
        for _ in range(65):
            clock[0] += 1.0
            progress.update(20)
    assert capsys.readouterr().err.splitlines() == [
        "dump: 600 of 118,287 records, 20 a second, 1:38:04 left",
        "dump: 1,200 of 118,287 records, 20 a second, 1:37:34 left",
    ]


@pytest.mark.parametrize(
    ("total", "unit", "start", "counts", "said"),
    [
        (int(4e9), "B", 0, [int(3e8)], "x: 300.0 MB of 4.0 GB, 10.0 MB a second, 0:06:10 left"),
        (100, "views", 40, [30], "x: 70 of 100 views, 1 a second, 0:00:30 left"),
        (100, "views", 0, [3], "x: 3 of 100 views, 0.1 a second, 0:16:10 left"),
        (100, "views", 0, [0], "x: 0 of 100 views"),
        (100, "views", 50, [-50], "x: 0 of 100 views"),  # all of it once more
        (10, "views", 0, [12], "x: 12 of 10 views, 0.4 a second, 0:00:00 left"),
    ],
)  # fmt: skip
def test_what_a_line_says(
    clock: list[float], capsys: pytest.CaptureFixture[str],
    total: int, unit: str, start: int, counts: list[int], said: str,
) -> None:  # fmt: skip
    with Progress("x", total=total, unit=unit, start=start) as progress:
        clock[0] += 30.0
        for count in counts:
            progress.update(count)
    assert capsys.readouterr().err == f"{said}\n"


def test_items_count_once_they_are_worked_off(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("x", total=3, unit="items") as progress:
        for _ in progress.over("abc"):
            clock[0] += 15.0
    assert capsys.readouterr().err == "x: 2 of 3 items, 0.067 a second, 0:00:15 left\n"


def test_the_work_of_others_counts_but_is_asked_for_seldom(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = []

    def count_done() -> int:
        asked.append(clock[0])
        return 10 * len(asked)

    with Progress("dump", total=90, unit="records", count_done=count_done) as progress:
        for _ in range(300):
            clock[0] += 0.1
            progress.update(1)
    assert len(asked) == 2  # after 10 and 20 s; the next is due
    clock[0] += 10
    progress.update(0)
    assert capsys.readouterr().err == "dump: 30 of 90 records, 0.75 a second, 0:01:20 left\n"


def test_silence_where_nothing_is_to_be_shown(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with Progress("x", total=3, unit="items", shown=False) as progress:
        clock[0] += 60.0
        progress.update(2)
    assert capsys.readouterr().err == ""


def test_threads_lose_no_unit(monkeypatch: pytest.MonkeyPatch) -> None:
    progress = Progress("x", total=8000, unit="items")
    threads = [
        threading.Thread(target=lambda: [progress.update() for _ in range(1000)]) for _ in range(8)
    ]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert "x: 8,000 of 8,000 items" in progress._line(module.monotonic())


class Terminal(io.StringIO):
    """What tqdm and Progress take for a terminal."""

    def isatty(self) -> bool:
        return True


def test_a_terminal_shows_a_bar_and_messages_do_not_tear_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(module, "_BAR_AFTER_SEC", 0.0)
    monkeypatch.setattr(module, "LINE_EVERY_SEC", 0.0)
    with Progress("dump", total=4, unit="records") as progress:
        progress.update(2)
        progress.say("a message")
        progress.say("a result", file=sys.stdout)
    shown = terminal.getvalue()
    assert "dump:   0%" in shown and "/4" in shown and "a message\n" in shown
    assert "a second" not in shown
    assert capsys.readouterr().out == "a result\n"


def test_without_stderr_there_is_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    with Progress("reading", total=3, unit="B") as progress:
        progress.update(3)
