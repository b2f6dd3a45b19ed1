"""The tables and curves of a sweep, from what its runs left behind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from configs.loader import load_config
from detectors.run_record import RunRecord
from stage2_distill.sweep import page
from stage2_distill.sweep.plan import Run
from stage2_distill.sweep.runs_file import Row
from stage2_distill.sweep.summary import Summary, summarise
from stage2_distill.sweep.worker import steps_of

ROWS = [Row(name=name, place="runs.yaml:1", overrides=()) for name in ("first", "second")]
# AP and that of one class, by row and seed; in the last run, nothing was detected.
FOUND = {
    "first": [
        {"AP": 10.0, "AP-cat": 8.0},
        {"AP": 20.0, "AP-cat": 16.0},
        {"AP": 30.0, "AP-cat": 9.0},
    ],
    "second": [{"AP": 11.0, "AP-cat": 9.0}, {"AP": 22.0, "AP-cat": 18.0}, {"AP": 0.0}],
}


def run_of(folder: Path, row: str, seed: int) -> Run:
    path = folder / "config.yaml"
    path.write_text("VERSION: 2\nDATASETS: {TEST: [val]}\nSOLVER: {MAX_ITER: 100, STEPS: []}\n")
    output = folder / row / str(seed)
    output.mkdir(parents=True)
    cfg = load_config(str(path), ["SEED", seed, "OUTPUT_DIR", str(output), "GID.MODE", "all"])
    return Run(row=row, seed=seed, cfg=cfg)


def finish(run: Run, results: Mapping[str, float]) -> None:
    RunRecord(
        config=run.digest, seed=run.seed, ranks=1, train=(), test=("val",), libraries={}, parts=(),
        finished=True, results={"val": results},
    ).write(run.folder)  # fmt: skip


def log(run: Run, *lines: dict[str, Any]) -> None:
    (run.folder / "metrics.json").write_text("".join(json.dumps(one) + "\n" for one in lines))


def summary_of(runs: list[Run], failures: dict[Run, str] | None = None) -> Summary:
    failed = failures or {}
    state = {run: "failed" if run in failed else "finished" for run in runs}
    return summarise("c.yaml", "runs.yaml", ROWS, runs, state.__getitem__, failed)


def test_rows_have_mean_spread_and_the_paired_difference(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, row, seed) for seed in (1, 2, 3) for row in FOUND]
    for run in runs:
        finish(run, FOUND[run.row][run.seed - 1])
    summary = summary_of(runs)
    text = summary.markdown()
    assert "| first | 20.00 | 10.00 | - | - | 3 | - | - |" in text
    # Differences 1, 2 and -30: mean -9, deviation 18.19, times 4.303 / sqrt(3).
    assert "| second | 11.00 | 11.00 | -9.00 | -54.19 to +36.19 | 3 | - | - |" in text
    # Where nothing is detected, the AP of each class is 0.
    assert "| cat | 11.00 | 9.00 |" in text
    found = summary.to_json()
    assert found["finished"] and found["first_row"] == "first"
    assert found["rows"]["second"]["results"]["val"]["ap"] == {1: 11.0, 2: 22.0, 3: 0.0}


def test_seeds_that_one_row_lacks_are_not_compared(tmp_path: Path) -> None:
    runs = [run_of(tmp_path, row, seed) for seed in (1, 2, 3) for row in FOUND]
    for run in runs[1:]:
        finish(run, FOUND[run.row][run.seed - 1])
    summary = summary_of(runs, {runs[0]: "error: no disk"})
    difference = summary.tables["val"]["second"].difference
    assert difference is not None and (difference.mean, difference.seeds) == (-14.0, 2)
    assert "- first, seed 1: failed: error: no disk" in summary.markdown()
    assert not summary.to_json()["finished"]


def test_curves_are_means_over_seeds_and_of_ap_where_it_was_evaluated_on_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = (run_of(tmp_path, "first", seed) for seed in (1, 2))
    # The second was interrupted after its first line, and did it again.
    log(first, {"iteration": 9, "loss_cls": 3.0, "val/AP": 1.0}, {"iteration": 19, "val/AP": 2.0})
    log(
        second,
        {"iteration": 9, "loss_cls": 7.0},
        {"iteration": 9, "loss_cls": 1.0, "lr": 0.1, "val/AP": 3.0},
    )
    seen: list[dict[str, dict[str, list[tuple[int, float]]]]] = []
    monkeypatch.setattr(page, "curves", lambda panels: seen.append(panels) or "")
    page.write_html(summary_of([first, second], {first: "", second: ""}), tmp_path / "sweep.html")
    assert seen == [{"val/AP": {"first": [(9, 2.0)]}, "loss_cls": {"first": [(9, 2.0)]}}]


def test_the_steps_of_a_run_are_those_that_it_logged(tmp_path: Path) -> None:
    run = run_of(tmp_path, "first", 1)
    assert steps_of(run) == 0
    log(run, {"iteration": 19}, {"iteration": 39})
    with open(run.folder / "metrics.json", "a") as file:
        file.write('{"iteration": 5')  # being written
    assert steps_of(run) == 40
