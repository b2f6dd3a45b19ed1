"""The demo: from nothing to a report, on a synthetic set or on a folder of yours.

`python -m benchmarks.demo` trains a teacher, dumps and verifies its cache, trains a baseline and a
distilled student on the same images, views and schedule, evaluates all three and writes
`report.html`.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from storage.example import add_example

from .families import FAMILIES, add_family
from .pipeline import EXPORTED_NAME, Pipeline, StepError, check_data, side_by_side
from .report import Report, write_json, write_report
from .result_tables import in_words

NUM_PICTURES = 6
# Of each student, for the curve of its AP.
NUM_EVALUATIONS = 4


def run(
    folder: Path,
    data: Path | None,
    seed: int,
    overrides: dict[str, Any] | None = None,
    family: str = "retinanet",
) -> Report:
    """Run every step; what an earlier run left in `folder` is replaced.

    Args:
        folder: where everything is written.
        data: a COCO-format folder; None makes the synthetic set.
        seed: of both students.
        overrides: config keys to change in every step.
        family: one of `families.FAMILIES`.

    Raises:
        FileNotFoundError: the data lack annotations; nothing was replaced.
        StepError: a command failed; names its log.
    """
    if data is not None:
        check_data(data)
    for name in ("teacher", "cache", "baseline", "distilled", "pictures", "evaluation", "logs"):
        shutil.rmtree(folder / name, ignore_errors=True)
    # It imports PyTorch, which `--help` need not wait for.
    from detectors.origin import machine

    from .models import measure

    start = time.monotonic()
    job = Pipeline(
        folder=folder,
        data=data or folder / "data",
        base=FAMILIES[family].synthetic,
        overrides=overrides or {},
    )
    if data is None:
        job.run("data", "dataset", "synthetic", "--output", job.data)
    job.write_configs()
    # The baseline needs no teacher, and the evaluations need no distilled student.
    teacher_weights, baseline = side_by_side(
        job.train_teacher, lambda: _train(job, "baseline", source="none", seed=seed)
    )
    job.dump()
    job.verify()
    distilled = folder / "distilled"

    def distill() -> dict[str, float]:
        _train(job, distilled.name, source="cache", seed=seed)
        metrics, _ = side_by_side(
            lambda: job.evaluate("distilled", "distill", distilled / EXPORTED_NAME),
            lambda: _draw(job, distilled / EXPORTED_NAME, baseline / EXPORTED_NAME),
        )
        return metrics

    teacher_metrics, baseline_metrics, distilled_metrics = side_by_side(
        lambda: job.evaluate("teacher", "teacher", teacher_weights),
        lambda: job.evaluate("baseline", "distill", baseline / EXPORTED_NAME),
        distill,
    )
    return Report(
        pipeline=job,
        seed=seed,
        metrics={
            "teacher": teacher_metrics,
            "baseline": baseline_metrics,
            "distilled": distilled_metrics,
        },
        trainings={"teacher": teacher_weights.parent, "baseline": baseline, "distilled": distilled},
        models=measure(
            {
                "teacher": (job.config("teacher"), teacher_weights),
                "student": (job.config("distill"), distilled / EXPORTED_NAME),
            }
        ),
        machine=in_words(machine()),
        pictures=sorted((folder / "pictures").glob("view_*.png")),
        total_seconds=time.monotonic() - start,
    )


def _train(job: Pipeline, name: str, *, source: str, seed: int) -> Path:
    return job.train_student(name, source=source, seed=seed, evaluations=NUM_EVALUATIONS)


def _draw(job: Pipeline, student: Path, baseline: Path) -> dict[str, float]:
    """Draw what the student sees."""
    job.run(
        "pictures", "stage2_distill", "show", "--config-file", job.config("distill"),
        "--count", NUM_PICTURES, "--baseline", baseline, "--output", job.folder / "pictures",
        "MODEL.WEIGHTS", student,
    )  # fmt: skip
    return {}


def main(argv: list[str] | None = None) -> int:
    """Run the demo; the exit code is 0 only if every step succeeded."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.demo", description=__doc__)
    add_family(parser)
    parser.add_argument(
        "--output", type=Path, help="folder for everything; default: demo, or demo_FAMILY"
    )
    parser.add_argument(
        "--data",
        type=Path,
        help="folder with images/ and annotations/instances_{train,val}.json; default: synthetic",
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of both students")
    add_example(parser, "--family fcos --output demo --seed 2")
    args = parser.parse_args(argv)
    folder = args.output or Path(FAMILIES[args.family].synthetic)
    try:
        report = run(folder, args.data, args.seed, family=args.family)
    except (StepError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    path = folder / "report.html"
    write_report(report, path)
    write_json(report, folder / "report.json")
    for name, values in report.metrics.items():
        print(f"{name:>9}: AP {values['AP']:5.2f}  AP50 {values['AP50']:5.2f}")
    print(f"{path} ({report.total_seconds:.0f} s in all)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
