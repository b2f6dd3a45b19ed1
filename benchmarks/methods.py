"""What a step from the cache costs with each method, beside one on ground truth alone.

The detectors are those of `benchmarks.distill`. The two students take turns, step by step, in one
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

from configs.nodes import FIELD_NODES, OWN_NODES
from storage.example import add_example

from .distill import STEP_LIMIT, Settings, Student, build, prepare
from .rows import Row, conclude

# Of a step with the method over one on ground truth alone; `gid` has its own, others none.
LIMITS = {
    "frs": 1.15,
    **dict.fromkeys(("pkd", "cwd", "mimic", "boxes"), 1.10),
}
# Each has a node of its name in capitals.
METHODS = tuple(name.lower() for name in OWN_NODES if name not in FIELD_NODES)


def measure(job: Settings, method: str, baseline: Student) -> Row:
    """Take steps with the method and on ground truth alone, in turn, and compare."""
    chosen = build(job, "cache", "DISTILL.METHODS", str((method,)))
    students = (baseline, Student(trainer=chosen))
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(job.warmup + job.rounds):
        # Neither always follows the other.
        for place in (0, 1) if number % 2 else (1, 0):
            start = process_time()
            students[place].step()
            computed = process_time() - start
            taken = computed if job.device == "cpu" else students[place].steps[-1]
            seconds[place].append(taken)
    alone, distilled = (median(one[job.warmup :]) for one in seconds)
    print(f"{method}: {distilled:.3f} s a step, on ground truth alone {alone:.3f} s")
    return Row(
        name=f"step, {method} / ground truth only",
        value=distilled / alone,
        limit=STEP_LIMIT[job.device] if method == "gid" else LIMITS.get(method, math.inf),
    )


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
        prepare(job)
        baseline = Student(trainer=build(job, "none"))
        rows = [measure(job, method, baseline) for method in args.methods]
    return conclude(rows, args.json)


if __name__ == "__main__":
    sys.exit(main())
