"""The HTML page of a sweep: its tables, and the curves of AP and losses."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from html import escape
from pathlib import Path

from ..pages import Curve, curves, logged_curves, picture, table, write_page
from .summary import Summary

_LOSS = "loss_"


def write_html(summary: Summary, path: Path) -> None:
    """Write the page; it needs no other file."""
    title = f"Sweep: {Path(summary.runs_file).stem}"
    sections = [f"<h1>{escape(title)}</h1>", *(f"<p>{escape(one)}</p>" for one in summary.intro())]
    for dataset in summary.tables:
        sections += [
            f"<h2>Average precision on {escape(dataset)} (COCO, percent)</h2>",
            table(*summary.main_table(dataset)),
            "<h2>By class, mean over seeds</h2>",
            table(*summary.class_table(dataset)),
        ]
    panels = _panels(summary)
    if panels:
        sections += ["<h2>Curves, mean over seeds</h2>", picture(curves(panels))]
    if summary.unfinished:
        lines = "".join(f"<li>{escape(line)}</li>" for line in summary.unfinished)
        sections += ["<h2>Runs without a result</h2>", f"<ul>{lines}</ul>"]
    write_page(path, title, sections)


def _panels(summary: Summary) -> dict[str, dict[str, Curve]]:
    """Title to row to its curve: AP where it was evaluated more than once, and each loss."""
    by_row: dict[str, list[dict[str, list[tuple[int, float]]]]] = {}
    for run in summary.runs:
        by_row.setdefault(run.row, []).append(logged_curves(run.folder))
    logged = {name: None for runs in by_row.values() for one in runs for name in one}
    periodic = [
        name
        for name in (f"{dataset}/AP" for dataset in summary.tables)
        if any(len(one.get(name, ())) > 1 for runs in by_row.values() for one in runs)
    ]
    panels: dict[str, dict[str, Curve]] = {}
    for name in [*periodic, *sorted(one for one in logged if one.startswith(_LOSS))]:
        panels[name] = {
            row: mean
            for row, runs in by_row.items()
            if (mean := _mean([one[name] for one in runs if name in one]))
        }
    return panels


def _mean(found: Sequence[Curve]) -> Curve:
    """The mean curve, at the iterations that all of them have."""
    if not found:
        return []
    points = [dict(one) for one in found]
    common = sorted(set.intersection(*(set(one) for one in points)))
    return [(step, statistics.mean(one[step] for one in points)) for step in common]
