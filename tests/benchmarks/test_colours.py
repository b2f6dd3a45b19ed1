"""What colours cost, in a short form: every step is timed, and the rows add them up."""

from __future__ import annotations

import pytest

from benchmarks import colours


def test_the_steps_add_up(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(colours, "SIZE", (60, 80))
    without, with_hue = colours.measure(rounds=1)
    *factors, hue = [float(line.split()[-2]) for line in capsys.readouterr().out.splitlines()]
    assert without.value == pytest.approx(sum(factors), abs=0.05)
    assert with_hue.value == pytest.approx(sum(factors) + hue, abs=0.05)
