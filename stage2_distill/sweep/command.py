"""The command: check, train, and write the table after every run."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from configs.stock_keys import DISTILL
from detectors.command import read_config
from storage.whole import write_whole

from .page import write_html
from .plan import plan_runs
from .runs_file import read_rows
from .schedule import Schedule
from .slots import find_slots
from .summary import Summary, summarise, write_json
from .worker import only_sweep, refuse_strays


def sweep(args: argparse.Namespace) -> int:
    """Train every row of a runs file with every seed; 1 where a run failed.

    Args:
        args: `config_file`, `imports`, `opts`, `runs`, `seeds`, `jobs` and `output`.

    Raises:
        FileNotFoundError, ValueError: before anything is trained, what is wrong with any of it.
        Interrupted: a signal came.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise ValueError("a sweep starts its trainings itself: start it without torchrun")
    rows = read_rows(args.runs)
    base = read_config(args, DISTILL)
    output = Path(args.output or Path(base.OUTPUT_DIR) / f"sweep_{Path(args.runs).stem}")
    slots = find_slots(base, args.jobs)
    with only_sweep(output):
        runs = plan_runs(args, rows, output)
        refuse_strays(output, runs)

        def write(schedule: Schedule) -> None:
            _write(
                summarise(
                    args.config_file, args.runs, rows, runs, schedule.state, schedule.failures
                ),
                output,
            )

        schedule = Schedule(runs, slots, write)
        try:
            schedule.train()
        finally:
            write(schedule)
        print((output / "sweep.md").read_text(), end="")
        print(f"written: {output}/sweep.json, sweep.md, sweep.html")
        return 1 if schedule.failures else 0


def _write(summary: Summary, output: Path) -> None:
    write_json(summary, output / "sweep.json")
    write_whole(output / "sweep.md", summary.markdown())
    write_html(summary, output / "sweep.html")
