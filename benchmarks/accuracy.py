"""AP of students over several seeds: from the cache, under the live teacher, on ground truth alone.

Of the demo's synthetic set, and of a folder of photographs. One teacher and one cache a preset
serve every seed. The students of a seed share initial weights, images, views and schedule. The exit
code is 0 only if the means are where they have to be: each preset close to the live teacher, and
the caches far above ground truth alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from storage.example import add_example

from .pipeline import EXPORTED_NAME, Pipeline, StepError, check_data, side_by_side
from .rows import Row, print_table

# How far the mean AP of a preset may be from that of the live teacher.
TOLERANCE = {"balanced": 0.5, "compact": 1.0}
# How far above ground truth alone the mean AP under a cache has to be.
GAIN = {"synthetic": 3.0, "photographs": 7.0}
BASELINE, LIVE = "ground truth", "live"


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """AP in percent: of the teacher, and of each student by seed."""

    teacher: float
    students: dict[str, dict[int, float]]

    def mean(self, student: str) -> float:
        """Mean AP of one kind of student over the seeds."""
        return statistics.mean(self.students[student].values())

    def table(self) -> str:
        """A row for every model, a column for every seed, and the mean."""
        seeds = list(self.students[BASELINE])
        lines = [f"{'AP':>12}" + "".join(f"  seed {seed:<3}" for seed in seeds) + "    mean"]
        lines.append(f"{'teacher':>12}" + " " * 10 * len(seeds) + f"{self.teacher:8.2f}")
        for name, values in self.students.items():
            cells = "".join(f"{value:10.2f}" for value in values.values())
            lines.append(f"{name:>12}{cells}{self.mean(name):8.2f}")
        return "\n".join(lines)

    def rows(self, at_least: float) -> list[Row]:
        """What is asked: `at_least` AP above ground truth alone, and nearness to the live one."""
        rows = []
        for preset in self.students.keys() - {BASELINE, LIVE}:
            gain = self.mean(preset) - self.mean(BASELINE)
            rows.append(
                Row(name=f"{preset} - {BASELINE}, AP", value=gain, limit=at_least, at_least=True)
            )
            if LIVE in self.students:
                gap = abs(self.mean(preset) - self.mean(LIVE))
                rows.append(Row(name=f"|{preset} - live|, AP", value=gap, limit=TOLERANCE[preset]))
        return sorted(rows, key=lambda row: row.name)

    def to_json(self, rows: list[Row]) -> dict[str, Any]:
        """Return the figures, and what they add up to."""
        return {**asdict(self), "rows": [row.to_json() for row in rows]}


def prepare(output: Path, photographs: Path | None) -> tuple[Pipeline, float]:
    """Return the job for photographs, or for the synthetic set, and the gain that is asked for."""
    if photographs is not None:
        job = Pipeline(folder=output / photographs.name, data=photographs, base="photographs")
        return job, GAIN["photographs"]
    job = Pipeline(folder=output / "synthetic", data=output / "synthetic" / "data")
    job.run("data", "dataset", "synthetic", "--output", job.data)
    return job, GAIN["synthetic"]


def measure(job: Pipeline, seeds: list[int], presets: list[str], *, live: bool) -> Accuracy:
    """Train and evaluate everything; the data must be in place."""
    job.write_configs()
    job.train_teacher()
    caches = {preset: job.dump(preset, name=f"caches/{preset}") for preset in presets}
    teacher = job.evaluate("teacher", "teacher", job.teacher_weights)["AP"]

    def train_and_evaluate(run: str, source: str, seed: int, preset: str) -> float:
        keys = {"CACHE__LOCATION": caches[preset], "CACHE__PRESET": preset}
        folder = job.train_student(run, source=source, seed=seed, **keys)
        return job.evaluate(run, "distill", folder / EXPORTED_NAME)["AP"]

    students: dict[str, dict[int, float]] = {}
    jobs: list[tuple[str, int, Callable[[], float]]] = []
    for name in [BASELINE, *([LIVE] if live else []), *presets]:
        students[name] = {}
        source = {BASELINE: "none", LIVE: "live"}.get(name, "cache")
        preset = name if name in caches else presets[0]
        for seed in seeds:
            run = f"{name.replace(' ', '_')}_{seed}"
            jobs.append((name, seed, partial(train_and_evaluate, run, source, seed, preset)))
    for start in range(0, len(jobs), 2):
        pair = jobs[start : start + 2]
        found = side_by_side(*(work for _, _, work in pair))
        for (name, seed, _), value in zip(pair, found, strict=True):
            students[name][seed] = value
    return Accuracy(teacher=teacher, students=students)


def main(argv: list[str] | None = None) -> int:
    """Measure, print the tables, compare with what is asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("output/accuracy"))
    parser.add_argument(
        "--photographs", type=Path, metavar="FOLDER",
        help="COCO-format folder of a few hundred real images with instances_val.json",
    )  # fmt: skip
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--presets", nargs="+", choices=list(TOLERANCE), default=list(TOLERANCE))
    parser.add_argument("--no-live", action="store_true", help="leave out the live teacher")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    add_example(parser, "--seeds 1 --presets compact --photographs datasets/photographs")
    args = parser.parse_args(argv)
    content = {}
    reached = True
    try:
        if args.photographs:
            check_data(args.photographs)
        for folder in [None, args.photographs] if args.photographs else [None]:
            job, gain = prepare(args.output, folder)
            found = measure(job, args.seeds, args.presets, live=not args.no_live)
            rows = found.rows(gain)
            print(f"{job.folder.name}\n{found.table()}")
            print_table(rows)
            reached &= all(row.reached for row in rows)
            content[job.folder.name] = found.to_json(rows)
    except (StepError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.json:
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    if not args.photographs:
        print("no photographs were given: only the synthetic set was measured")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
