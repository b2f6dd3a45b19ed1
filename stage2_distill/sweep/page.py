"""The HTML page of a sweep: its tables, and the curves of AP and losses."""

from __future__ import annotations

from html import escape
from pathlib import Path

from ..pages import curves, mean_curves, table, write_page
from .summary import Summary


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
    folders: dict[str, list[Path]] = {}
    for run in summary.runs:
        folders.setdefault(run.row, []).append(run.folder)
    panels = mean_curves(folders, summary.tables)
    if panels:
        sections += ["<h2>Curves, mean over seeds</h2>", curves(panels)]
    if summary.unfinished:
        lines = "".join(f"<li>{escape(line)}</li>" for line in summary.unfinished)
        sections += ["<h2>Runs without a result</h2>", f"<ul>{lines}</ul>"]
    write_page(path, title, sections)
