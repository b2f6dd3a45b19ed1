"""How far a cache is from the live teacher: the figures, their limits, and their table."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a preset must reach.

    Attributes:
        matched: least share of the live teacher's GIs that the cache's GIs match.
        error: largest relative error of a loss.
        cosine: least cosine of the two gradients.
    """

    matched: float
    error: float
    cosine: float


LIMITS = {
    ("exact", "float32"): Limits(matched=1.0, error=1e-5, cosine=0.999999),
    ("balanced", "float32"): Limits(matched=0.97, error=0.01, cosine=0.999),
    ("compact", "float32"): Limits(matched=0.90, error=0.03, cosine=0.99),
}


@dataclass(frozen=True, kw_only=True)
class StudentFidelity:
    """How far the cache is from the live teacher, for one student.

    Attributes:
        student: its checkpoint, or `initial`.
        instances: what the methods chose under the live teacher, such as GIs, over all views.
        matched: share of it that is found again under the cache, such as by a GI of an IoU of 0.9
            or more; None where nothing is chosen.
        errors: loss name to |sum of differences| / |sum of the live ones|, over all batches.
        mean_errors: loss name to the mean over the batches of |difference| / |live|, in which
            signs cannot cancel; no limit is set for it.
        cosines: method to that of the two gradients of its losses, those of all batches laid side
            by side; None where both are zero, which says nothing.
    """

    student: str
    instances: int
    matched: float | None
    errors: dict[str, float]
    mean_errors: dict[str, float]
    cosines: dict[str, float | None]

    @property
    def error(self) -> float:
        """The largest of the errors."""
        return float(np.max(list(self.errors.values()), initial=0.0))  # NaN is the largest

    @property
    def cosine(self) -> float | None:
        """The least of the cosines; None where there is none."""
        found = [one for one in self.cosines.values() if one is not None]
        return float(np.min(found)) if found else None  # NaN is the least

    def reaches(self, limits: Limits) -> bool:
        """Whether every figure is within the limits; without any gradient there is none."""
        return self.cosine is not None and not self.misses(limits)

    def misses(self, limits: Limits) -> bool:
        """Whether a figure that there is lies beyond its limit; NaN does."""
        return not (
            (self.matched is None or self.matched >= limits.matched)
            and self.error <= limits.error
            and (self.cosine is None or self.cosine >= limits.cosine)
        )


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Result of `fidelity.measure`: one entry a student.

    Attributes:
        cache: its location.
        preset: of the cache.
        views: how many were compared.
        limits: of the preset; None where none are set (`exact` in float16, or a live teacher with
            more levels).
    """

    cache: str
    preset: str
    views: int
    limits: Limits | None
    students: tuple[StudentFidelity, ...]

    @property
    def reached(self) -> bool:
        """Whether every student is within the limits of the preset."""
        return self.limits is None or all(one.reaches(self.limits) for one in self.students)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON."""
        students = [
            {**asdict(one), "error": one.error, "cosine": one.cosine} for one in self.students
        ]
        return {**asdict(self), "students": students, "reached": self.reached}

    def lines(self) -> list[str]:
        """Return the table as text, a column for each student, the verdict last."""
        students = self.students
        rows = [["", *(one.student[-20:] for one in students), "limit"]]

        def add(name: str, form: str, values: Iterable[float | None], limit: str = "") -> None:
            cells = ("none" if value is None else format(value, form) for value in values)
            bound = format(getattr(self.limits, limit), form) if limit and self.limits else ""
            rows.append([name, *cells, bound])

        add("chosen, found again", ".4f", [one.matched for one in students], "matched")
        for name in students[0].errors:
            term = name.removeprefix("loss_")
            add(f"{term}, error", ".2e", [one.errors[name] for one in students], "error")
            add(f"{term}, mean error", ".2e", [one.mean_errors[name] for one in students])
        for name in students[0].cosines:
            add(f"{name}, cosine", ".7f", [one.cosines[name] for one in students], "cosine")
        lines = [f"{row[0]:<36}" + "".join(f"{cell:>22}" for cell in row[1:]) for row in rows]
        return [*lines, f"{self.cache}: {self.preset}, {self.views} views: {self._verdict()}"]

    def _verdict(self) -> str:
        if self.limits is None:
            return "no limits are set for it"
        if self.reached:
            return "within the limits"
        if any(one.misses(self.limits) for one in self.students):
            return "NOT within the limits"
        empty = ", ".join(one.student for one in self.students if one.cosine is None)
        return (
            f"nothing was compared for {empty}: no loss has a gradient; raise --views, or a weight "
            "of a method"
        )
