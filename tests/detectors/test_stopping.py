"""Signals that end a run: at once outside of a step, at its end within one."""

from __future__ import annotations

import signal
from typing import Any

import pytest

from detectors import stopping
from detectors.stopping import Interrupted, StopSignals

NUMBERS = [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1]


@pytest.fixture(autouse=True)
def python_handlers() -> Any:
    """As a process in the foreground has them, and as they were afterwards."""
    before = {number: signal.getsignal(number) for number in (*NUMBERS, signal.SIGCHLD)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_is_raised_at_once_outside_of_a_step(number: signal.Signals) -> None:
    with pytest.raises(Interrupted, match=f"by {number.name}") as caught, StopSignals("SIGUSR1"):
        signal.raise_signal(number)
    assert caught.value.number == number


@pytest.mark.parametrize("number", NUMBERS)
def test_a_signal_waits_for_the_end_of_a_step(number: signal.Signals) -> None:
    done = []
    with pytest.raises(Interrupted), StopSignals("SIGUSR1") as signals:
        signals.defer()
        signal.raise_signal(number)
        done.append("the step")
        # A terminal and torchrun both send it.
        signal.raise_signal(signal.SIGTERM)
        with signals.immediate():
            done.append("the next one")
    assert done == ["the step"]


def test_after_a_moment_that_is_immediate_signals_wait_again() -> None:
    with StopSignals() as signals:
        signals.defer()
        with signals.immediate():
            pass
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Interrupted, match="by SIGTERM; saved"):
            signals.raise_pending("saved")


def test_a_signal_that_comes_again_later_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "ONE_REQUEST_SEC", 0.0)
    with StopSignals() as signals:
        signals.defer()
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)


def test_handlers_are_those_of_before_afterwards() -> None:
    before = [signal.getsignal(number) for number in (*NUMBERS, signal.SIGCHLD)]
    with StopSignals("SIGUSR1") as signals:
        signals.defer()
        assert signal.getsignal(signal.SIGTERM) not in before
    assert [signal.getsignal(number) for number in (*NUMBERS, signal.SIGCHLD)] == before


def test_a_signal_that_a_shell_made_ignored_stays_so() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with StopSignals():
        signal.raise_signal(signal.SIGINT)


def test_one_that_was_not_asked_for_is_left_alone() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with StopSignals():
        assert signal.getsignal(signal.SIGUSR1) == before
