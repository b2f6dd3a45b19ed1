"""AP of students over several seeds: from the cache, under the live teacher, on ground truth alone.

Of the synthetic set, and of a folder of photographs. One teacher and one cache a preset serve every
seed. The students of a seed share initial weights, images, views and schedule, so that differences
are taken seed by seed. The exit code is 0 only if they are where they have to be: each preset above
ground truth alone, with every seed, and not below the live teacher by more than seeds differ.

Results of finished runs are kept in the output folder: the same command again goes on with the
rest. They are refused once the configs have changed; a change of the code goes unnoticed.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from storage.example import add_example

from .families import FAMILIES, add_family
from .kept import Kept
from .paired import Paired
from .pipeline import EXPORTED_NAME, Pipeline, StepError, check_data
from .rows import Row, print_table, write_figures

PRESETS = ("balanced", "compact")
# How far above ground truth alone the mean AP under a cache has to be, and where by more.
GAIN = 3.0
GAINS = {("retinanet", "photographs"): 7.0}
# How far the mean AP under a cache may lie below that of the live teacher.
LOSS = 1.0
BASELINE, LIVE = "ground truth", "live"


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """AP in percent: of the teacher, and of each student by seed.

    Attributes:
        teacher: its AP.
        students: name to AP by seed; the presets under their names.
    """

    teacher: float
    students: dict[str, dict[int, float]]

    def mean(self, student: str) -> float:
        """Mean AP of one kind of student over the seeds."""
        return statistics.mean(self.students[student].values())

    def differences(self) -> dict[tuple[str, str], Paired]:
        """Every kind of student against ground truth alone, and every cache against `live`."""
        pairs = [
            (name, other)
            for other in (BASELINE, LIVE)
            for name in self.students
            if other in self.students and name not in (BASELINE, other)
        ]
        return {(a, b): Paired.of(self.students[a], self.students[b]) for a, b in pairs}

    def table(self) -> str:
        """A row for every model, a column for every seed, and the mean; then the differences."""
        seeds = list(self.students[BASELINE])
        width = max(12, *map(len, self.students))
        lines = [f"{'AP':>{width}}" + "".join(f"  seed {seed:<3}" for seed in seeds) + "    mean"]
        lines.append(f"{'teacher':>{width}}" + " " * 10 * len(seeds) + f"{self.teacher:8.2f}")
        for name, values in self.students.items():
            cells = "".join(f"{value:10.2f}" for value in values.values())
            lines.append(f"{name:>{width}}{cells}{self.mean(name):8.2f}")
        lines += [f"{a} - {b}: {found}" for (a, b), found in self.differences().items()]
        return "\n".join(lines)

    def rows(self, at_least: float) -> list[Row]:
        """The limits: `at_least` AP above ground truth alone, and nearness to the live teacher.

        Those of presets alone: what a cache without some levels costs is printed, and has none.
        """
        rows = []
        for (name, other), found in self.differences().items():
            if name not in PRESETS:
                continue
            what = f"{name} - {other}, AP"
            if other == BASELINE:
                least = min(found.by_seed)
                rows += [
                    Row(name=what, value=found.mean, limit=at_least, at_least=True),
                    Row(name=f"{what} of the worst seed", value=least, limit=0, at_least=True),
                ]
                continue
            rows.append(Row(name=what, value=found.mean, limit=-LOSS, at_least=True))
            if found.half_width is not None:
                off = abs(found.mean)
                row = Row(
                    name=f"|{what}|, half its 95% interval", value=off, limit=found.half_width
                )
                rows.append(row)
        return rows

    def to_json(self, rows: list[Row]) -> dict[str, Any]:
        """Return the figures, and what they add up to."""
        return {
            "teacher": self.teacher,
            "students": self.students,
            "differences": {
                f"{a} - {b}": {"mean": found.mean, "interval": found.interval}
                for (a, b), found in self.differences().items()
            },
            "rows": [row.to_json() for row in rows],
        }


@dataclass(frozen=True, kw_only=True)
class Student:
    """A kind of student: the teacher's source, and of a cache the preset and the levels kept."""

    source: str
    preset: str = "balanced"
    levels: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As the tables have it."""
        if self.source != "cache":
            return {"none": BASELINE, "live": LIVE}[self.source]
        return " ".join([self.preset, *self.levels])

    @property
    def file_name(self) -> str:
        """The name without spaces."""
        return self.name.replace(" ", "_")

    def run(self, seed: int) -> str:
        """The name of its run with a seed."""
        return f"{self.file_name}_{seed}"

    @property
    def keys(self) -> dict[str, Any]:
        """The config keys of its cache."""
        return {"CACHE.PRESET": self.preset, "CACHE.LEVELS": self.levels}


def students_of(presets: list[str], levels: list[str], *, live: bool) -> list[Student]:
    """The kinds of students to compare, ground truth alone first."""
    caches = [Student(source="cache", preset=preset) for preset in presets]
    fewer = [Student(source="cache", preset=preset, levels=tuple(levels)) for preset in presets]
    lives = [Student(source="live")] if live else []
    return [Student(source="none"), *lives, *caches, *(fewer if levels else [])]


def prepare(
    output: Path,
    photographs: Path | None,
    family: str = "retinanet",
    overrides: dict[str, Any] | None = None,
) -> Pipeline:
    """Return the job of a family for photographs, or for the synthetic set, its data in place."""
    folders, keys = FAMILIES[family], overrides or {}
    if photographs is not None:
        folder = output / family / photographs.name
        return Pipeline(folder=folder, data=photographs, base=folders.photographs, overrides=keys)
    folder = output / family / "synthetic"
    job = Pipeline(folder=folder, data=folder / "data", base=folders.synthetic, overrides=keys)
    job.run("data", "dataset", "synthetic", "--output", job.data)
    return job


def measure(
    job: Pipeline, seeds: list[int], students: list[Student], *, at_once: int = 2
) -> Accuracy:
    """Train and evaluate whatever is not kept of an earlier run; the data must be in place.

    Args:
        job: of the family and the data.
        seeds, students: which to train.
        at_once: how many of them, at the same time.

    Raises:
        StepError: a command failed.
        ValueError: what is kept was measured with other configs.
    """
    job.write_configs()
    kept = Kept(job.folder / "results")
    kept.require(job.resolved_configs())
    if not job.teacher_weights.exists():
        job.train_teacher()
    caches = {one: _dump(job, one) for one in students if one.source == "cache"}

    def train_and_evaluate(student: Student, seed: int) -> float:
        run = student.run(seed)
        keys = {"CACHE.LOCATION": caches[student], **student.keys} if student in caches else {}
        folder = job.train_student(run, source=student.source, seed=seed, keys=keys)
        return job.evaluate(run, "distill", folder / EXPORTED_NAME)["AP"]

    def of_teacher() -> float:
        return job.evaluate("teacher", "teacher", job.teacher_weights)["AP"]

    runs: dict[str, Callable[[], float]] = {"teacher": of_teacher}
    for seed in seeds:
        for one in students:
            runs[one.run(seed)] = partial(train_and_evaluate, one, seed)
    missing = [run for run in runs if not kept.has(run)]
    # A failure leaves out what has not begun.
    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(lambda run: kept.value(run, runs[run]), missing))
    found = {run: kept.value(run, work) for run, work in runs.items()}
    return Accuracy(
        teacher=found["teacher"],
        students={one.name: {seed: found[one.run(seed)] for seed in seeds} for one in students},
    )


def _dump(job: Pipeline, student: Student) -> Path:
    """Write the cache that a student needs, or what is missing of it."""
    return job.dump(
        student.preset,
        "CACHE.LEVELS",
        student.levels,
        name=f"caches/{student.file_name}",
        go_on=True,
    )


def main(argv: list[str] | None = None) -> int:
    """Measure, print the tables, compare with what is asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    add_family(parser)
    parser.add_argument("--output", type=Path, default=Path("output/accuracy"))
    parser.add_argument(
        "--photographs", type=Path, metavar="FOLDER",
        help="COCO-format folder of a few hundred real images with instances_val.json",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--presets", nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument(
        "--levels", nargs="+", default=[], metavar="NAME",
        help="each preset a second time, with caches of these levels alone, as CACHE.LEVELS",
    )  # fmt: skip
    parser.add_argument("--no-live", action="store_true", help="leave out the live teacher")
    parser.add_argument("--no-synthetic", action="store_true", help="photographs alone")
    parser.add_argument(
        "--at-once", type=int, default=2, metavar="N", help="students trained at once, default: 2"
    )
    parser.add_argument(
        "--gpu", action="store_true", help="train on a GPU, where all share one, with data workers"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    add_example(parser, "--seeds 1 --presets compact --photographs datasets/photographs")
    args = parser.parse_args(argv)
    if args.no_synthetic and not args.photographs:
        parser.error("--no-synthetic leaves nothing without --photographs FOLDER")
    overrides = {"MODEL.DEVICE": "cuda", "DATALOADER.NUM_WORKERS": 2} if args.gpu else {}
    sets: list[Path | None] = [] if args.no_synthetic else [None]
    sets += [args.photographs] if args.photographs else []
    students = students_of(args.presets, args.levels, live=not args.no_live)
    content = {}
    reached = True
    try:
        if args.photographs:
            check_data(args.photographs)
        for folder in sets:
            job = prepare(args.output, folder, args.family, overrides)
            found = measure(job, args.seeds, students, at_once=args.at_once)
            data = "photographs" if folder else "synthetic"
            rows = found.rows(GAINS.get((args.family, data), GAIN))
            print(f"{args.family}, {job.folder.name}\n{found.table()}")
            print_table(rows)
            reached &= all(row.reached for row in rows)
            content[job.folder.name] = found.to_json(rows)
    except (StepError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.json:
        write_figures({"family": args.family, "sets": content}, args.json)
    if not args.photographs:
        print("no photographs were given: only the synthetic set was measured")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
