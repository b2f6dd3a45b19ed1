"""HTML pages that need no other file: tables, pictures and curves."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from dataset.drawing import BLUE, GREEN, ORANGE, PURPLE, SKY, VERMILLION
from storage.whole import write_whole

Curve = Sequence[tuple[float, float]]

# Of metrics that are the AP of one class.
OF_CLASS = "AP-"
_LOSS = "loss_"

_STYLE = """
:root { color-scheme: light dark; --ground: #fff; --ink: #222; --faint: #5a5a5a; --line: #bbb; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #17191c; --ink: #e4e4e4; --faint: #a8a8a8; --line: #555; }
}
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 68rem; padding: 0 1rem;
  background: var(--ground); color: var(--ink); overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; } h2 { font-size: 1.25rem; margin-top: 2.2rem; }
.note, figcaption { color: var(--faint); }
.wide { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
td, th { padding: .25rem .7rem; text-align: right; white-space: nowrap; }
th { border-bottom: 1px solid var(--line); }
td:first-child, th:first-child { text-align: left; position: sticky; left: 0; padding-left: 0;
  background: var(--ground); }
.wide img { display: block; width: 100%; min-width: 60rem; height: auto; }
.curves { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(18rem, 1fr)); }
figure { margin: 0; max-width: 36rem; } svg { width: 100%; height: auto; }
.legend { display: flex; flex-wrap: wrap; gap: 0 1rem; margin: 0; padding: 0; list-style: none;
  font-size: .85rem; }
.legend i { display: inline-block; width: 1.6rem; margin-right: .4rem; vertical-align: middle;
  border-top: 3px solid; }
"""
# Colours of curves, which are seen on a light and on a dark ground; then again with other lines.
_COLOURS = (ORANGE, PURPLE, SKY, VERMILLION, GREEN, BLUE, "currentColor")
_LINES = ("solid", "dashed", "dotted")
# Matplotlib writes it where a page has the colour of its text.
_INK = "#010203"
_LOOK: dict[Any, Any] = {
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor"), _INK),
    **dict.fromkeys(("xtick.color", "ytick.color"), _INK),
    # Letters are text, in a size that follows the drawing's; and the same page twice is the same.
    "svg.fonttype": "none",
    "svg.hashsalt": "",
}
# What matplotlib would write of itself into each drawing.
_UNSAID = ("Creator", "Date", "Format", "Type")
# Of a panel, inches.
_PANEL = (5.0, 3.0)


def write_page(path: Path, title: str, sections: Sequence[str]) -> None:
    """Write one page, whole or not at all; the sections are HTML."""
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title>"
        f"<style>{_STYLE}</style><body>{''.join(sections)}</body></html>\n"
    )
    write_whole(path, page)


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table; its cells are text."""
    head = "".join(f"<th>{escape(str(cell))}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def picture(png: bytes, alt: str) -> str:
    """A PNG, held by the page itself; `alt` says what it shows."""
    data = base64.b64encode(png).decode()
    return f'<p class="wide"><img alt="{escape(alt)}" src="data:image/png;base64,{data}"></p>'


def number(value: float | None) -> str:
    """Two decimals, or a dash where there is none."""
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"


def class_table(
    metrics: Mapping[str, Mapping[str, float]],
) -> tuple[list[str], list[list[str]]]:
    """Header and cells of AP by class: a row for each class, a column for each model.

    Args:
        metrics: model to COCO metrics, of which those named `AP-<class>` count.
    """
    names = {name: None for values in metrics.values() for name in values}
    cells = [
        [name.removeprefix(OF_CLASS), *(number(one.get(name)) for one in metrics.values())]
        for name in names
        if name.startswith(OF_CLASS)
    ]
    return ["class", *metrics], cells


def curves(panels: Mapping[str, Mapping[str, Curve]]) -> str:
    """Curves over iterations, a drawing for each title; a label has one line in all of them."""
    labels = dict.fromkeys(label for named in panels.values() for label in named)
    kinds = itertools.product(_LINES, _COLOURS)
    lines = dict(zip(labels, itertools.cycle(kinds), strict=False))
    drawn = (_panel(title, named, lines) for title, named in panels.items())
    return f'<div class="curves">{"".join(drawn)}</div>'


def _panel(title: str, named: Mapping[str, Curve], lines: Mapping[str, tuple[str, str]]) -> str:
    """A drawing of curves, with its title above and a legend of its own below.

    Args:
        title: what the curves show.
        named: label to points.
        lines: label to the style of its line and its colour.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    file = io.StringIO()
    with rc_context(_LOOK):
        figure = Figure(figsize=_PANEL, layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots()
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.25)
        for label, curve in named.items():
            style, colour = lines[label]
            # A single point would not be seen.
            axes.plot(
                *zip(*curve, strict=True), color=_INK if colour == "currentColor" else colour,
                linestyle=style, marker="o" if len(curve) == 1 else "",
            )  # fmt: skip
        axes.set_xlabel("iteration")
        figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(_UNSAID))
    drawing = file.getvalue().replace(_INK, "currentColor")
    drawing = drawing[drawing.index("<svg") + len("<svg") :]
    last = ", ".join(f"{label} {curve[-1][1]:.3g}" for label, curve in named.items())
    alt = escape(f"{title} over iterations; at the end: {last}")
    legend = "".join(
        f'<li><i style="border-color:{colour};border-top-style:{style}"></i>{escape(label)}</li>'
        for label, (style, colour) in ((label, lines[label]) for label in named)
    )
    return (
        f"<figure><figcaption>{escape(title)}</figcaption>"
        f'<svg role="img" aria-label="{alt}"{drawing}<ul class="legend">{legend}</ul></figure>'
    )


def mean_curves(
    runs: Mapping[str, Sequence[Path]], datasets: Iterable[str]
) -> dict[str, dict[str, Curve]]:
    """Curves of trainings for `curves`, means over those of a row.

    Args:
        runs: row to the folders of its runs.
        datasets: that were evaluated on.

    Returns:
        AP on each dataset, where some run evaluated more than once, and each loss, those of most
        rows first: to row to curve.
    """
    logged = {row: [logged_curves(one) for one in folders] for row, folders in runs.items()}
    found = [one for row in logged.values() for one in row]
    periodic = [
        name
        for name in (f"{dataset}/AP" for dataset in datasets)
        if any(len(one.get(name, ())) > 1 for one in found)
    ]
    losses = Counter(name for one in found for name in one if name.startswith(_LOSS))
    names = [*periodic, *sorted(losses, key=lambda name: (-losses[name], name))]
    return {
        name: {
            row: mean
            for row, own in logged.items()
            if (mean := _mean([one[name] for one in own if name in one]))
        }
        for name in names
    }


def _mean(found: Sequence[Curve]) -> Curve:
    """The mean curve, at the iterations that all of them have."""
    if not found:
        return []
    points = [dict(one) for one in found]
    common = sorted(set.intersection(*(set(one) for one in points)))
    return [(step, statistics.mean(one[step] for one in points)) for step in common]


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
