"""AP of students trained from the cache against ground truth alone, over several seeds.

One teacher and one cache serve every seed. Both students of a seed share initial weights, images,
views and schedule. The exit code is 0 only if the mean gain reaches `--at-least`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from .pipeline import EXPORTED_NAME, Pipeline, StepError, side_by_side

SOURCES = {"baseline": "none", "distilled": "cache"}


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """AP in percent: of the teacher, and of each student by seed."""

    teacher: float
    students: dict[str, dict[int, float]]

    @property
    def gain(self) -> float:
        """Mean over the seeds of distilled minus baseline."""
        pairs = zip(
            self.students["distilled"].values(), self.students["baseline"].values(), strict=True
        )
        return statistics.mean(ours - theirs for ours, theirs in pairs)

    def table(self) -> str:
        """A row for every model, a column for every seed, and the mean."""
        seeds = list(self.students["baseline"])
        lines = [f"{'AP':>10}" + "".join(f"  seed {seed:<3}" for seed in seeds) + "    mean"]
        lines.append(f"{'teacher':>10}" + " " * 10 * len(seeds) + f"{self.teacher:8.2f}")
        for name, values in self.students.items():
            cells = "".join(f"{value:10.2f}" for value in values.values())
            lines.append(f"{name:>10}{cells}{statistics.mean(values.values()):8.2f}")
        return "\n".join(lines)


def measure(job: Pipeline, seeds: list[int]) -> Accuracy:
    """Train and evaluate everything; the data must be in place."""
    job.write_configs()
    job.train_teacher()
    job.dump()
    teacher = job.evaluate("teacher", "teacher", job.teacher_weights)["AP"]
    students: dict[str, dict[int, float]] = {name: {} for name in SOURCES}

    def train_and_evaluate(name: str, seed: int) -> float:
        run = f"{name}_{seed}"
        folder = job.train_student(run, source=SOURCES[name], seed=seed)
        return job.evaluate(run, "distill", folder / EXPORTED_NAME)["AP"]

    for seed in seeds:
        found = side_by_side(*(partial(train_and_evaluate, name, seed) for name in SOURCES))
        for name, value in zip(SOURCES, found, strict=True):
            students[name][seed] = value
    return Accuracy(teacher=teacher, students=students)


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table, compare the gain with what is asked."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accuracy", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("output/accuracy"))
    parser.add_argument("--data", type=Path, help="COCO-format folder; default: the synthetic set")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--at-least", type=float, default=3.0, help="mean gain asked for, AP")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    args = parser.parse_args(argv)
    job = Pipeline(folder=args.output, data=args.data or args.output / "data")
    try:
        if args.data is None:
            job.run("data", "dataset", "synthetic", "--output", job.data)
        found = measure(job, args.seeds)
    except (StepError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    reached = found.gain >= args.at_least
    print(found.table())
    print(f"gain {found.gain:+.2f} AP (at least {args.at_least}: {'yes' if reached else 'no'})")
    if args.json:
        content = {"teacher": found.teacher, "students": found.students, "gain": found.gain}
        args.json.write_text(json.dumps(content, indent=1))
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
