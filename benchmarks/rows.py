"""Rows of a benchmark: what was measured, the number it has to reach, and whether it did."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured number.

    Attributes:
        name: what was measured, with its unit.
        value: the number.
        limit: what it has to reach.
        at_least: whether `limit` is the smallest value that reaches it, not the largest.
    """

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def reached(self) -> bool:
        """Whether the value is within its limit; NaN never is."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    def to_json(self) -> dict[str, Any]:
        """Return the row, and whether it is reached."""
        return {**asdict(self), "reached": self.reached}


def print_table(rows: Sequence[Row]) -> None:
    """Print one line for each row: name, value, limit, verdict."""
    width = max((len(row.name) for row in rows), default=0)
    for row in rows:
        bound = f"{'>=' if row.at_least else '<='} {row.limit:g}"
        verdict = "reached" if row.reached else "NOT REACHED"
        print(f"{row.name:{width}}  {row.value:10.6g}  {bound:>10}  {verdict}")


def write_json(rows: Sequence[Row], path: str | Path) -> None:
    """Write the rows, each with its `reached`, and machine, date and command of this process."""
    write_figures({"rows": [row.to_json() for row in rows]}, path)


def write_figures(figures: dict[str, Any], path: str | Path) -> None:
    """Write what was measured, and machine, date and command of this process."""
    # It imports PyTorch, which `--help` need not wait for.
    from detectors.origin import origin

    Path(path).write_text(json.dumps({**origin(), **figures}, indent=1) + "\n")


def conclude(rows: Sequence[Row], path: str | Path | None) -> int:
    """Print the rows, write them where asked; the exit code, 0 only if all are reached."""
    print_table(rows)
    if path:
        write_json(rows, path)
    return 0 if all(row.reached for row in rows) else 1
