"""HTML pages that need no other file: tables, pictures and curves."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

Curve = Sequence[tuple[float, float]]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } td, th { padding: .25rem .8rem; text-align: right; }
th { border-bottom: 1px solid #999; } td:first-child, th:first-child { text-align: left; }
img { max-width: 100%; } .note { color: #555; }
"""
# Panels beside each other, and their size in inches.
_COLUMNS = 2
_PANEL = (5.5, 3.6)


def write_page(path: Path, title: str, sections: Sequence[str]) -> None:
    """Write one page, whole or not at all; the sections are HTML."""
    page = (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style><body>{''.join(sections)}</body></html>\n"
    )
    partial = path.with_name(path.name + ".partial")
    partial.write_text(page, encoding="utf-8")
    partial.replace(path)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; its cells are text."""
    head = "".join(f"<th>{escape(str(cell))}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def picture(png: bytes) -> str:
    """A PNG, held by the page itself."""
    return f'<p><img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}"></p>'


def number(value: float | None) -> str:
    """Two decimals, or a dash where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"


def curves(panels: Mapping[str, Mapping[str, Curve]]) -> bytes:
    """A PNG of curves over iterations; a label has one colour in all panels.

    Args:
        panels: title to label to points; one title at least.
    """
    from matplotlib import colormaps
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lines = -(-len(panels) // _COLUMNS)
    figure = Figure(figsize=(_COLUMNS * _PANEL[0], lines * _PANEL[1]), layout="constrained")
    FigureCanvasAgg(figure)
    places = figure.subplots(lines, _COLUMNS, squeeze=False).flatten()
    labels = list(dict.fromkeys(label for named in panels.values() for label in named))
    palette = colormaps["tab20" if len(labels) > 10 else "tab10"]
    for axes in places[len(panels) :]:
        axes.set_axis_off()
    for axes, (title, named) in zip(places, panels.items(), strict=False):
        for label, curve in named.items():
            colour = palette(labels.index(label) % palette.N)
            # A single point would not be seen.
            marker = "o" if len(curve) == 1 else ""
            axes.plot(*zip(*curve, strict=True), color=colour, marker=marker, label=_plain(label))
        axes.set_title(_plain(title))
        axes.set_xlabel("iteration")
        if named:
            axes.legend(fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def _plain(text: str) -> str:
    """Text that Matplotlib takes for no formula."""
    return text.replace("$", r"\$")


def logged_curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """What a training run logged in `metrics.json`: name to `(iteration, value)`, ascending.

    Of an iteration that was done again after an interruption, the last value counts.
    """
    path = folder / "metrics.json"
    found: dict[str, dict[int, float]] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            entry = json.loads(line)
        except ValueError:  # cut off by an interruption
            continue
        for name, value in entry.items():
            found.setdefault(name, {})[entry["iteration"]] = value
    return {name: sorted(points.items()) for name, points in found.items()}
