"""The demo's report: one HTML file that needs no other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from stage2_distill.pages import (
    Curve,
    curves,
    logged_curves,
    number,
    picture,
    table,
    write_page,
)
from storage import CacheReader

from .pipeline import Pipeline


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
        picture(_loss_curves(report)),
        "<h2>What the distilled student sees</h2>",
        '<p class="note">Training views, one a row. GIs are the boxes on which teacher and '
        "student disagree most.</p>",
        *(picture(path.read_bytes()) for path in report.pictures),
        "<h2>Teacher cache</h2>",
        _cache_table(report.pipeline.cache),
        "<h2>Time</h2>",
        table(["step", "seconds"], [[k, f"{v:.1f}"] for k, v in report.pipeline.seconds.items()]),
    ]
    write_page(path, "Distillation report", sections)


def _metrics_table(metrics: Mapping[str, Mapping[str, float]]) -> str:
    columns = ["AP", "AP50", "AP75", "APs", "APm", "APl"]
    rows = [
        [name, *(number(values.get(column)) for column in columns)]
        for name, values in metrics.items()
    ]
    return table(["model", *columns], rows)


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
    return intro + table(["field", "MB", "bytes a record"], rows)


def _loss_curves(report: Report) -> bytes:
    """PNG of the detector's own losses of both students, and of the distillation losses."""
    own: dict[str, Curve] = {}
    distilled: dict[str, Curve] = {}
    for name, folder in report.students.items():
        for key, curve in logged_curves(folder).items():
            if "_gid_" in key and key.startswith("loss_"):
                distilled[key] = curve
            elif key.startswith("loss_"):
                own[f"{name}: {key}"] = curve
    return curves({"losses on ground truth": own, "distillation losses, weighted": distilled})


def write_json(report: Report, path: Path) -> None:
    """Write the figures of the report for scripts."""
    content = {
        "metrics": {name: dict(values) for name, values in report.metrics.items()},
        "seed": report.seed,
        "seconds": report.pipeline.seconds,
        "total_seconds": report.total_seconds,
    }
    path.write_text(json.dumps(content, indent=1))
