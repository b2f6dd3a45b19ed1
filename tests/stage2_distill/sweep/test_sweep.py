"""Whole sweeps, of real trainings in processes of their own."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from stage2_distill.__main__ import main
from stage2_distill.sweep.worker import Survivor
from tests.stage2_distill.conftest import write_student

ROWS = """
rows:
  ground truth: {TEACHER.SOURCE: none}
  <gid> | $1: {}
  diverging: {SOLVER.BASE_LR: 900000.0}
"""
STEPS = 60
DEADLINE_SEC = 120


def write(folder: Path, target: Path) -> list[str]:
    """The command of a sweep of one row of ROWS after the other, but for the last one."""
    config = write_student(
        folder,
        target,
        "balanced",
        SOLVER={"MAX_ITER": STEPS, "CHECKPOINT_PERIOD": 2},
        TEST={"EVAL_PERIOD": 20, "DETECTIONS_PER_IMAGE": 5},
    )
    runs = target / "runs.yaml"
    runs.write_text(ROWS)
    output = str(target / "sweep")
    paths = ["--config-file", str(config), "--runs", str(runs), "--output", output]
    return ["sweep", *paths, "--seeds", "1"]


@pytest.fixture(scope="module")
def swept(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a sweep that has come to its end."""
    target = tmp_path_factory.mktemp("swept")
    assert main([*write(folder, target), "--jobs", "3"]) == 1
    return target / "sweep"


def weights(run: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(run / "student_final.pth", weights_only=True)["model"])


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_SEC
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def end(process: int, run: Path) -> None:
    """End the training of a run, if it is still there."""
    command = Path(f"/proc/{process}/cmdline")
    if command.exists() and str(run) in command.read_text():
        os.kill(process, signal.SIGKILL)


def test_a_run_that_fails_stops_no_other_and_is_told(swept: Path) -> None:
    rows = json.loads((swept / "sweep.json").read_text())["rows"]
    states = {name: row["runs"][0]["state"] for name, row in rows.items()}
    assert states == {"ground truth": "finished", "<gid> | $1": "finished", "diverging": "failed"}
    error = rows["diverging"]["runs"][0]["error"]
    assert error.startswith("error: iteration ") and "NaN" in error
    assert error in (swept / "diverging" / "seed_1" / "console.log").read_text()
    for page in ("sweep.md", "sweep.html"):
        assert "diverging, seed 1: failed: error: " in (swept / page).read_text()


def test_each_run_has_a_folder_a_log_and_its_config(swept: Path) -> None:
    run = swept / "gid_1" / "seed_1"
    assert "SOLVER:" in (run / "config.yaml").read_text()
    assert "Starting training from iteration 0" in (run / "console.log").read_text()
    assert weights(run)
    record = json.loads((run / "run.json").read_text())
    rows = json.loads((swept / "sweep.json").read_text())["rows"]
    assert record["finished"] and record["seed"] == 1
    assert record["config"] == rows["<gid> | $1"]["runs"][0]["config"]
    found = rows["<gid> | $1"]["results"]["folder_val"]
    assert found["mean"] == found["ap"]["1"] == record["results"]["folder_val"]["AP"]
    assert {f"AP-{name}" for name in ("disc", "star")} <= found["means"].keys()


def test_the_page_needs_no_other_file_and_escapes_names(swept: Path) -> None:
    page = (swept / "sweep.html").read_text()
    assert "<figcaption>loss_cls</figcaption><svg " in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)
    assert "<gid>" not in page and "<td>&lt;gid&gt; | $1</td>" in page
    # One seed: a difference without an interval.
    (line,) = [
        one
        for one in (swept / "sweep.md").read_text().splitlines()
        if one.startswith("| <gid> \\| $1 | ") and "+" in one
    ]
    assert line.split(" | ")[4:6] == ["-", "1"]


def test_what_is_finished_is_skipped_and_what_failed_is_tried_again(
    swept: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started: list[str] = []

    def start(run: Any, slot: Any) -> None:
        started.append(run.row)
        raise ValueError("enough")

    monkeypatch.setattr("stage2_distill.sweep.schedule.start", start)
    assert main([*write(folder, swept.parent), "--jobs", "3"]) == 1
    assert started == ["diverging"]
    assert "ground truth, seed 1: is finished already" in capsys.readouterr().err


def test_a_sweep_that_is_killed_goes_on_and_ends_as_if_it_had_not_been(
    swept: Path,
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    command = write(folder, tmp_path)
    (tmp_path / "runs.yaml").write_text("rows: {gid_1: {}}")
    run = tmp_path / "sweep" / "gid_1" / "seed_1"
    tag, lock = run / "last_checkpoint", run / "running.lock"

    # Killed in the middle; its training is left behind, at work.
    first = subprocess.Popen([sys.executable, "-m", "stage2_distill", *command])
    try:
        wait_for(tag.exists)
        child = json.loads(lock.read_text())["pid"]
        os.kill(child, signal.SIGSTOP)
        request.addfinalizer(lambda: end(child, run))
    finally:
        first.kill()
    assert first.wait() == -signal.SIGKILL
    reached = tag.read_text()

    # The next one waits for it, and goes on with what it leaves when it is killed too. Then a
    # signal ends them both after a whole step.
    is_alive = Survivor.is_alive
    waited: list[bool] = []

    def kill(survivor: Survivor) -> bool:
        waited.append(is_alive(survivor))
        assert survivor.pid == child
        os.kill(child, signal.SIGKILL)
        return is_alive(survivor)

    monkeypatch.setattr(Survivor, "is_alive", kill)

    over = threading.Event()

    def interrupt() -> None:
        wait_for(lambda: over.is_set() or tag.read_text() > reached)
        if not over.is_set():
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        code = main(command)
    finally:
        over.set()
        thread.join()
    assert code == 128 + signal.SIGTERM
    assert waited[0]
    said = capsys.readouterr().err
    assert "a training of an earlier sweep is still at work" in said
    assert "gid_1, seed 1: goes on" in said
    assert "1 runs were stopped; the same command goes on with them" in said
    log = (run / "console.log").read_text()
    assert "interrupted by SIGTERM; saved after iteration" in log
    states = json.loads((tmp_path / "sweep" / "sweep.json").read_text())["rows"]["gid_1"]["runs"]
    assert [one["state"] for one in states] == ["waiting"]

    assert main(command) == 0
    expected = weights(swept / "gid_1" / "seed_1")
    assert all(torch.equal(value, expected[name]) for name, value in weights(run).items())
