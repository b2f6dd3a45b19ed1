"""What a step from the cache costs with each method, beside one on ground truth alone.

The detectors are those of `benchmarks.distill`. All students take turns, step by step, in one
process. Medians are compared: on a CPU of the time that the process computed, which does not count
what else the machine does, on a GPU by the clock.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path
from statistics import median
from time import process_time

from storage.example import add_example

from .distill import STEP_LIMIT, Settings, Student, build, prepare
from .rows import Row, conclude

# Of a step with the method over one on ground truth alone; those of the others are only measured.
LIMITS = {
    "gid": STEP_LIMIT["cpu"],
    "frs": 1.15,
    **dict.fromkeys(("pkd", "cwd", "mimic", "boxes"), 1.10),
}
METHODS = ("gid", "pkd", "frs", "cwd", "mgd", "fgd", "mimic", "boxes", "pseudo")


def measure(job: Settings, methods: list[str]) -> list[Row]:
    """Set up, take the steps in turn, and compare."""
    prepare(job)
    alone = Student(trainer=build(job, "none"))
    students = {
        name: Student(trainer=build(job, "cache", "DISTILL.METHODS", str((name,))))
        for name in methods
    }
    everyone = {"": alone, **students}
    seconds: dict[str, list[float]] = {name: [] for name in everyone}
    for number in range(job.warmup + job.rounds):
        # Nobody always follows the same one.
        for place in range(len(everyone)):
            name = list(everyone)[(number + place) % len(everyone)]
            start = process_time()
            everyone[name].step()
            computed = process_time() - start
            seconds[name].append(computed if job.device == "cpu" else everyone[name].steps[-1])
    typical = {name: median(steps[job.warmup :]) for name, steps in seconds.items()}
    print(f"ground truth alone: {typical['']:.3f} s a step")
    return [
        Row(
            name=f"step, {name} / ground truth only",
            value=typical[name] / typical[""],
            limit=LIMITS.get(name, math.inf),
        )
        for name in students
    ]


def main(argv: list[str] | None = None) -> int:
    """Measure, print the table; 0 only if every number is reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--rounds", type=int, default=9, help="steps measured, default: 9")
    parser.add_argument("--device", choices=tuple(STEP_LIMIT), default="cpu")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here too")
    add_example(parser, "--methods pkd fgd --rounds 5")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as temporary:
        job = Settings(
            folder=Path(temporary),
            preset="balanced",
            size=(320, 320),
            batch=2,
            device=args.device,
            amp=False,
            workers=1,
            memory=False,
            rounds=args.rounds,
            warmup=4,
        )
        rows = measure(job, args.methods)
    return conclude(rows, args.json)


if __name__ == "__main__":
    sys.exit(main())
