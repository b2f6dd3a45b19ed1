"""The demo's report: one HTML file that needs no other."""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from storage import CacheReader

from .pipeline import Pipeline, losses_of

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; color: #222; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
table { border-collapse: collapse; } td, th { padding: .25rem .8rem; text-align: right; }
th { border-bottom: 1px solid #999; } td:first-child, th:first-child { text-align: left; }
img { max-width: 100%; } .note { color: #555; }
"""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the demo found.

    Attributes:
        pipeline: the job; its folder, data and timings.
        seed: of both students.
        metrics: COCO metrics in percent of teacher, baseline and distilled.
        students: training folders of baseline and distilled.
        pictures: PNG files of `stage2_distill show`.
        total_seconds: wall time of all steps.
    """

    pipeline: Pipeline
    seed: int
    metrics: Mapping[str, Mapping[str, float]]
    students: Mapping[str, Path]
    pictures: Sequence[Path]
    total_seconds: float


def write_report(report: Report, path: Path) -> None:
    """Write the report as self-contained HTML."""
    gain = report.metrics["distilled"]["AP"] - report.metrics["baseline"]["AP"]
    sections = [
        "<h1>Offline distillation: what came out</h1>",
        f"<p>Data: {escape(str(report.pipeline.data))}. Both students share architecture, images, "
        f"views, schedule and seed ({report.seed}); the distilled one also saw the teacher cache. "
        f"It is {gain:+.2f} AP from the baseline. All steps took {report.total_seconds:.0f} s.</p>",
        "<h2>Average precision on the validation images (COCO, percent)</h2>",
        _metrics_table(report.metrics),
        "<h2>Losses</h2>",
        _picture(_loss_curves(report)),
        "<h2>What the distilled student sees</h2>",
        '<p class="note">Training views, one a row. GIs are the boxes on which teacher and '
        "student disagree most.</p>",
        *(_picture(picture.read_bytes()) for picture in report.pictures),
        "<h2>Teacher cache</h2>",
        _cache_table(report.pipeline.cache),
        "<h2>Time</h2>",
        _table(["step", "seconds"], [[k, f"{v:.1f}"] for k, v in report.pipeline.seconds.items()]),
    ]
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Distillation report</title>'
        f"<style>{_STYLE}</style><body>{''.join(sections)}</body></html>\n"
    )
    path.write_text(page, encoding="utf-8")


def _metrics_table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    columns = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    rows = [
        [name, *(_number(values.get(column)) for column in columns)]
        for name, values in metrics.items()
    ]
    return _table(["model", *columns], rows)


def _cache_table(location: Path) -> str:
    """Bytes a record and in all, by array, as they lie on the disk."""
    reader = CacheReader(location)
    sizes: dict[str, int] = {}
    for bucket in (location / "buckets").iterdir():
        for name in (array.name for array in next(iter(reader.arrays.values()))):
            files = (bucket / name).rglob("*")
            sizes[name] = sizes.get(name, 0) + sum(f.stat().st_size for f in files if f.is_file())
    records = len(reader)
    rows = [[name, f"{size / 1e6:.2f}", f"{size / records:,.0f}"] for name, size in sizes.items()]
    total = sum(sizes.values())
    rows.append(["all arrays", f"{total / 1e6:.2f}", f"{total / records:,.0f}"])
    intro = (
        f"<p>{records} records of {reader.index.num_views} views, preset "
        f"{escape(reader.manifest.preset)}.</p>"
    )
    return intro + _table(["field", "MB", "bytes a record"], rows)


def _loss_curves(report: Report) -> bytes:
    """PNG of the detector's own losses of both students, and of the distillation losses."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    for name, folder in report.students.items():
        for key, curve in losses_of(folder).items():
            axes, label = (right, key) if "_gid_" in key else (left, f"{name}: {key}")
            axes.plot(*zip(*curve, strict=True), label=label)
    for axes, title in ((left, "losses on ground truth"), (right, "distillation losses, weighted")):
        axes.set_title(title)
        axes.set_xlabel("iteration")
        axes.legend(fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=110)
    return file.getvalue()


def _picture(png: bytes) -> str:
    return f'<p><img alt="" src="data:image/png;base64,{base64.b64encode(png).decode()}"></p>'


def _table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(str(cell))}</th>" for cell in header)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f"<table><tr>{head}</tr>{body}</table>"


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.2f}"


def write_json(report: Report, path: Path) -> None:
    """Write the figures of the report for scripts."""
    content = {
        "metrics": {name: dict(values) for name, values in report.metrics.items()},
        "seed": report.seed,
        "seconds": report.pipeline.seconds,
        "total_seconds": report.total_seconds,
    }
    path.write_text(json.dumps(content, indent=1))
