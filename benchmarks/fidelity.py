"""Fidelity of every preset on trained teachers, and on photographs what a record of each takes.

One teacher and one student of a family for each data set: the demo's synthetic set, and folders of
photographs. The student is trained under the live teacher, so that no codec has a part in what it
is measured on; its beginning, its state half way and its end are compared on 64 views.

Teachers, students and data that lie in the output folder from an earlier run are used again.
`--precision bfloat16` shows what a dump in that arithmetic costs; the reference stays float32.
What a Faster R-CNN's cache without P2 changes is measured too; no limit is set for it.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from configs.nodes import TeacherConfig
from dataset.reading import load_annotations
from storage.example import add_example

from .families import FAMILIES, add_family
from .pipeline import Pipeline, StepError
from .rows import Row, conclude

NUM_VIEWS = 64
PRESETS = ("exact", "balanced", "compact")
_ONE_STAGE_MB = {"balanced": 8.0, "compact": 3.2}
# Of the largest record of a preset, for a view padded to this size.
BUDGETS_MB = {
    "retinanet": _ONE_STAGE_MB,
    "fcos": _ONE_STAGE_MB,
    "faster_rcnn": {"balanced": 26.0, "compact": 7.5},
}
_BUDGET_SIZE = (800, 1344)
# Further choices of CACHE.LEVELS, where a family's largest level can be spared.
_FEWER_LEVELS = {"faster_rcnn": [("p3", "p4", "p5", "p6")]}
_NUM_LARGE_IMAGES = 4

_STEPS = {"synthetic": 400, "photographs": 300}
# Photographs: a pyramid as wide as that of real detectors, on views with room for objects.
_PHOTOGRAPHS: dict[str, Any] = {
    "INPUT.MIN_SIZE_TRAIN": [160, 176, 192],
    "INPUT.MAX_SIZE_TRAIN": 256,
    "INPUT.MIN_SIZE_TEST": 192,
    "INPUT.MAX_SIZE_TEST": 256,
    "SOLVER.IMS_PER_BATCH": 4,
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One data set with a trained teacher and student of one family."""

    family: str
    name: str
    job: Pipeline
    num_classes: int


def prepare(output: Path, photographs: Path | None, family: str = "retinanet") -> Subject:
    """Make or find a data set, and train its teacher and its student unless they are there.

    Args:
        output: folder of all families and data sets.
        photographs: COCO-format folder; None for the synthetic set.
        family: one of `families.FAMILIES`; on photographs too, its small models for the synthetic
            set, with wider pyramids and larger views.

    Raises:
        FileNotFoundError: the folder has no annotations.
        StepError: a command failed.
    """
    name = photographs.name if photographs else "synthetic"
    folder = output / family / name
    data = photographs or folder / "data"
    job = Pipeline(folder=folder, data=data, base=FAMILIES[family].synthetic)
    if photographs is None and not data.exists():
        job.run("data", "dataset", "synthetic", "--output", data)
    job.split = _split_of(data)
    annotations = load_annotations(data / "annotations" / f"instances_{job.split}.json")
    steps = _STEPS["photographs" if photographs else "synthetic"]
    job.overrides = {"SOLVER.MAX_ITER": steps, "SOLVER.CHECKPOINT_PERIOD": steps // 2}
    if photographs:
        views = max(2, -(-NUM_VIEWS // len(annotations.images)))
        job.overrides |= _PHOTOGRAPHS
        job.teacher_overrides = {"MODEL.FPN.OUT_CHANNELS": 256}
        job.view_overrides = {
            "VIEWS.SCALES": [160, 176, 192], "VIEWS.MAX_SIZE": 256, "VIEWS.NUM": views,
        }  # fmt: skip
    job.write_configs()
    if not job.teacher_weights.exists():
        job.train_teacher()
    if not (job.folder / "student" / "student_final.pth").exists():
        job.train_student("student", source="live", seed=1)
    return Subject(family=family, name=name, job=job, num_classes=len(annotations.categories))


def fidelity_rows(
    subject: Subject,
    preset: str,
    precision: str = "float32",
    methods: Sequence[str] = ("gid",),
    levels: Sequence[str] = (),
) -> list[Row]:
    """Dump the cache of a preset and compare it with the live teacher, by the worst student.

    A figure that no student has, where nothing is chosen or no gradient is other than zero, has no
    row.

    Args:
        subject: teacher and student.
        preset: of the cache.
        precision: arithmetic of the dump, as in TEACHER.PRECISION; the live teacher has float32.
        methods: that are measured, those left out for which the preset is refused.
        levels: as CACHE.LEVELS; the live teacher has all, and no limit is set. Empty: all.
    """
    # PyTorch is imported where it is used, so that `--help` need not wait for it.
    from stage2_distill.fidelity_result import LIMITS, Limits
    from stage2_distill.methods import get_method

    chosen = [name for name in methods if preset not in get_method(name).too_coarse]
    if not chosen:
        return []
    found = _measure(subject.job, preset, precision, chosen, levels)
    unlimited = Limits(matched=-math.inf, error=math.inf, cosine=-math.inf)
    limits = unlimited if levels else LIMITS[preset, "float32"]
    students = found["students"]
    data = f"{subject.name}, {subject.num_classes} classes, {found['views']} views"
    what = ", ".join([subject.family, data, " ".join([preset, *levels])])
    if precision != "float32":
        what += f" in {precision}"
    rows: list[Row] = []

    def add(name: str, values: Iterable[float | None], limit: float, *, at_least: bool) -> None:
        found = [value for value in values if value is not None]
        if found:
            # numpy's extremes of what holds NaN are NaN, which reaches no limit.
            value = float(np.min(found) if at_least else np.max(found))
            row = Row(name=f"{what}, {name}", value=value, limit=limit, at_least=at_least)
            rows.append(row)

    if "gid" in chosen:
        matched = [one["matched"] for one in students]
        add("gid: GIs matched", matched, limits.matched, at_least=True)
    for method in chosen:
        errors = [
            error
            for one in students
            for name, error in one["errors"].items()
            if name.split("_")[1] == method
        ]
        cosines = [one["cosines"][method] for one in students]
        add(f"{method}: error of a loss", errors, limits.error, at_least=False)
        add(f"{method}: cosine of the gradients", cosines, limits.cosine, at_least=True)
    return rows


def size_rows(subject: Subject) -> list[Row]:
    """Dump a few views at scale 800 and give the largest record, brought to 800x1344.

    Bytes of a record grow with its positions; what does not is small.
    """
    what = f"{subject.family}, {subject.name}, {subject.num_classes} classes"
    rows = []
    for preset, budget in BUDGETS_MB[subject.family].items():
        for levels in ((), *_FEWER_LEVELS.get(subject.family, [])):
            name = "_".join(["large", preset, *levels])
            cache = subject.job.dump(
                preset,
                "VIEWS.SCALES", "(800,)", "VIEWS.MAX_SIZE", 1333, "VIEWS.NUM", 1,
                "TEACHER.BATCH", 1, "CACHE.SHARD_RECORDS", 1, "CACHE.LEVELS", levels,
                "DATASET.MAX_IMAGES", _NUM_LARGE_IMAGES,
                name=f"caches/{name}",
            )  # fmt: skip
            kept = " ".join(["800x1344 record of", preset, *levels])
            limit = math.inf if levels else budget
            rows.append(Row(name=f"{what}: {kept}, MB", value=_largest_record(cache), limit=limit))
    return rows


def _split_of(data: Path) -> str:
    """Return `train`, or the only split that the folder has annotations of."""
    splits = sorted(
        path.stem.removeprefix("instances_")
        for path in (data / "annotations").glob("instances_*.json")
    )
    if "train" in splits:
        return "train"
    if len(splits) != 1:
        raise FileNotFoundError(
            f"{data}/annotations: expected instances_train.json, or the instances of one split;"
            f" found {splits}"
        )
    return splits[0]


def _measure(
    job: Pipeline, preset: str, precision: str, methods: Sequence[str], levels: Sequence[str]
) -> dict[str, Any]:
    stated = ("TEACHER.PRECISION", precision, "CACHE.LEVELS", tuple(levels))
    cache = job.dump(preset, *stated, name="_".join([f"caches/{preset}", precision, *levels]))
    # Exit code 1 says that a limit was missed: a result, not a failure.
    output = job.run(
        f"fidelity {cache.name}", "stage2_distill", "fidelity", "--json", "--views", NUM_VIEWS,
        *(["--all-levels"] if levels else []), "--config-file", job.config("distill"),
        "CACHE.LOCATION", cache, "CACHE.PRESET", preset, *stated,
        "OUTPUT_DIR", job.folder / "student", "DISTILL.METHODS", tuple(methods), codes=(0, 1),
    )  # fmt: skip
    line = output.splitlines()[-1]
    if not line.startswith("{"):
        raise StepError(f"fidelity {cache.name}: {line}")
    return dict(json.loads(line))


def _largest_record(cache: Path) -> float:
    """Megabytes of the largest record of a store, in proportion to the positions of 800x1344."""
    from storage import CacheReader

    reader = CacheReader(cache)
    table = reader.table
    strides = reader.manifest.levels.values()
    whole = sum(math.prod(-(-side // stride) for side in _BUDGET_SIZE) for stride in strides)
    sizes = []
    for record in range(len(reader)):
        shard, _ = table.shard_of(record)
        positions = reader.manifest.geometries[shard.bucket].num_positions
        (encoded,) = reader.read_encoded([record])
        size = sum(len(chunk) for chunk in encoded.values())
        sizes.append(size * whole / positions)
    return max(sizes) / 1e6


def main(argv: list[str] | None = None) -> int:
    """Print the table; 0 only if every preset is within its limits."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fidelity", description=__doc__)
    add_family(parser)
    parser.add_argument("--output", type=Path, default=Path("output/fidelity"), help="folder")
    parser.add_argument(
        "--photographs", type=Path, action="append", default=[], metavar="FOLDER",
        help="a COCO-format folder beside the synthetic set; may be given again",
    )  # fmt: skip
    parser.add_argument("--methods", nargs="+", default=["gid"], help="default: gid")
    parser.add_argument("--precision", choices=TeacherConfig.PRECISIONS, default="float32")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here too")
    add_example(parser, "--photographs datasets/photographs --precision bfloat16")
    args = parser.parse_args(argv)
    from stage2_distill.methods import get_method

    for name in args.methods:
        if not get_method(name).weights:
            parser.error(f"--methods: {name} has no loss, so there is nothing to compare")
    rows: list[Row] = []
    for photographs in (None, *args.photographs):
        subject = prepare(args.output, photographs, args.family)
        for preset in PRESETS:
            rows += fidelity_rows(subject, preset, args.precision, args.methods)
        for levels in _FEWER_LEVELS.get(args.family, []):
            # Of the methods that train no layer for each level, with which there is no comparing.
            some = [name for name in args.methods if name in ("gid", "boxes")]
            rows += fidelity_rows(subject, "balanced", args.precision, some, levels)
        if photographs and args.precision == "float32":
            rows += size_rows(subject)
    return conclude(rows, args.json)


if __name__ == "__main__":
    sys.exit(main())
