"""The demo's report: one HTML file that needs no other."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from stage2_distill.pages import (
    class_table,
    curves,
    mean_curves,
    number,
    picture,
    table,
    write_page,
)
from storage import CacheReader

from .pipeline import Pipeline

if TYPE_CHECKING:
    from .models import Measured

# What is evaluated on, see `Pipeline.evaluate`.
_TESTED = "folder_val"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What the demo found.

    Attributes:
        pipeline: the job; its folder, data and timings.
        seed: of both students.
        metrics: COCO metrics in percent of teacher, baseline and distilled.
        models: size and speed of teacher and student.
        machine: what they were measured on.
        trainings: folders of teacher, baseline and distilled.
        pictures: PNG files of `stage2_distill show`.
        total_seconds: wall time of all steps.
    """

    pipeline: Pipeline
    seed: int
    metrics: Mapping[str, Mapping[str, float]]
    models: Mapping[str, Measured]
    machine: str
    trainings: Mapping[str, Path]
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
        "<h2>By class</h2>",
        table(*class_table(report.metrics)),
        "<h2>Curves</h2>",
        '<p class="note">Losses on ground truth, and those of distillation, weighted. The '
        "teacher's AP is that of its end.</p>",
        _curves(report),
        "<h2>Size and speed</h2>",
        _models_table(report),
        "<h2>What the distilled student sees</h2>",
        '<p class="note">Views of training images: ground truth, and what teacher, baseline and '
        "distilled student detect. GIs are the boxes on which teacher and student disagree most; "
        "there the losses act.</p>",
        *(picture(path.read_bytes(), _says(path)) for path in report.pictures),
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


def _says(path: Path) -> str:
    """What a picture of `show` shows, for those who do not see it."""
    image = path.stem.removeprefix("view_")
    return f"Image {image} with boxes of ground truth, teacher, baseline, student, and GIs"


def _models_table(report: Report) -> str:
    rows = [
        [name, f"{one.parameters / 1e6:.2f}", f"{one.ms_per_image:.1f}"]
        for name, one in report.models.items()
    ]
    intro = (
        "<p>One validation image at a time, the median; teacher and student in turns, on "
        f"{escape(report.machine)}. The baseline is of the student's size.</p>"
    )
    return intro + table(["model", "million parameters", "ms per image"], rows)


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


def _curves(report: Report) -> str:
    """AP and losses of all three on the way; the teacher's AP is that of its end."""
    panels = mean_curves({name: [one] for name, one in report.trainings.items()}, [_TESTED])
    ap = f"{_TESTED}/AP"
    if ap in panels:
        steps = [step for curve in panels[ap].values() for step, _ in curve]
        teacher = report.metrics["teacher"]["AP"]
        panels[ap] = {"teacher": [(min(steps), teacher), (max(steps), teacher)], **panels[ap]}
    return curves(panels)


def write_json(report: Report, path: Path) -> None:
    """Write the figures of the report for scripts."""
    content = {
        "metrics": {name: dict(values) for name, values in report.metrics.items()},
        "models": {name: asdict(one) for name, one in report.models.items()},
        "machine": report.machine,
        "seed": report.seed,
        "seconds": report.pipeline.seconds,
        "total_seconds": report.total_seconds,
    }
    path.write_text(json.dumps(content, indent=1))
