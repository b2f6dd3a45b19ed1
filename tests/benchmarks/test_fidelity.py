"""Which rows the benchmark of fidelity makes of what the command says of each student."""

from __future__ import annotations

import math
from typing import Any

import pytest

from benchmarks import fidelity
from benchmarks.fidelity import Subject, fidelity_rows


def student(matched: float | None, cosine: float | None, error: float = 0.0) -> dict[str, Any]:
    """What `stage2_distill fidelity --json` has of one."""
    return {"matched": matched, "errors": {"loss_gid_cls": error}, "cosines": {"gid": cosine}}


@pytest.mark.parametrize(
    ("students", "values"),
    [
        ([student(0.99, 1.0), student(0.98, 0.9999, 0.001)], [0.98, 0.001, 0.9999]),
        # As the command has it, one without a choice or a gradient says nothing of the others.
        ([student(None, 1.0), student(0.98, None)], [0.98, 0.0, 1.0]),
        ([student(None, None)], [0.0]),
        ([student(0.98, 1.0), student(math.nan, math.nan, math.nan)], [math.nan] * 3),
    ],
    ids=["the worst", "some without", "all without", "not finite"],
)
def test_a_row_is_the_worst_of_the_students_that_have_a_figure(
    monkeypatch: pytest.MonkeyPatch, students: list[dict[str, Any]], values: list[float]
) -> None:
    found = {"views": 3, "students": students}
    monkeypatch.setattr(fidelity, "_measure", lambda *arguments: found)
    subject = Subject(family="retinanet", name="synthetic", job=None, num_classes=2)  # type: ignore[arg-type]
    rows = fidelity_rows(subject, "balanced")
    assert [row.value for row in rows] == pytest.approx(values, nan_ok=True)
    assert all(row.reached for row in rows) != math.isnan(values[0])
