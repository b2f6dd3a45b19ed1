"""The teacher cache against its numbers: sizes, fidelity, reading, opening, verifying.

`python -m benchmarks.cache --photographs FOLDER ...` prints each figure beside its limit and exits
with 0 only if all are reached. Without photographs, fidelity is measured on the synthetic set
alone, and sizes are not: they need a teacher of 256 channels that has seen real images.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path

from storage import CacheReader, verify
from storage.example import add_example

from . import store_speed
from .pipeline import StepError
from .rows import Row, print_table, write_json

QUICK_LIMIT_SEC = 10.0


def measure(output: Path, photographs: list[Path]) -> list[Row]:
    """Measure everything; each table is printed as soon as it is there."""
    from . import fidelity  # here, since it imports PyTorch, which `--help` need not wait for

    rows: list[Row] = []

    def show(found: list[Row]) -> None:
        print_table(found)
        rows.extend(found)

    for folder in [None, *photographs]:
        subject = fidelity.prepare(output, folder)
        for preset in fidelity.PRESETS:
            show(fidelity.fidelity_rows(subject, preset))
        if folder is not None:
            show(fidelity.size_rows(subject))
    speed = output / "speed"
    show(store_speed.reading(speed))
    show(store_speed.opening(speed))
    show([quick_row(speed / "large")])
    show(store_speed.verifying(speed))
    return rows


def quick_row(store: Path) -> Row:
    """Time `verify --level quick` of the large store, in two processes, folders in memory."""

    def check() -> None:
        report = verify(store, "quick", workers=2)
        assert report.ok, report.problems[:3]

    seconds = statistics.median(store_speed.seconds_of(check) for _ in range(3))
    records = len(CacheReader(store))
    name = f"verify --level quick of {records:,} records, s"
    return Row(name=name, value=seconds, limit=QUICK_LIMIT_SEC)


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 0 only if every number is reached."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cache", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("output/cache_benchmark"))
    parser.add_argument(
        "--photographs", type=Path, nargs="+", default=[], metavar="FOLDER",
        help="COCO-format folders of real images, best one of 3 and one of 80 classes",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    add_example(parser, "--photographs datasets/photographs --json output/cache.json")
    args = parser.parse_args(argv)
    try:
        rows = measure(args.output, args.photographs)
    except (StepError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if args.json:
        write_json(rows, args.json)
    missed = [row for row in rows if not row.reached]
    print(f"{len(rows) - len(missed)} of {len(rows)} numbers reached")
    print_table(missed)
    if not args.photographs:
        print("no photographs were given: sizes and their fidelity were not measured")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
