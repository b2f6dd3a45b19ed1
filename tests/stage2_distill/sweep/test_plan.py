"""What a sweep refuses, all of it before anything is trained."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.loader import load_config
from detectors.run_record import RunRecord, run_digest
from stage2_distill.__main__ import main
from stage2_distill.sweep import schedule
from stage2_distill.sweep.plan import plan_runs
from stage2_distill.sweep.runs_file import read_rows
from stage2_distill.sweep.slots import find_slots
from stage2_distill.sweep.worker import only_sweep
from tests.stage2_distill.conftest import Configure

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "start", None)


def write_runs(folder: Path, rows: str) -> str:
    path = folder / "runs.yaml"
    path.write_text(f"rows: {{{rows}}}")
    return str(path)


def refused(path: Path, rows: str, capsys: Capture, *options: str) -> str:
    """What a sweep of these rows says in its last line."""
    runs = write_runs(path.parent, rows)
    command = ["sweep", "--config-file", str(path), "--runs", runs, *options]
    assert main(command) == 1
    *_, last = capsys.readouterr().err.splitlines()
    assert last.startswith("error: ")
    return last


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("a: {}, b: {GID.TOP_KK: 5}", "row 'b': unknown config key GID.TOP_KK, did you mean GID.T"),
        ("a: {}, b: {GID.TOP_K: five}", "row 'b': GID.TOP_K: expected int"),
        ("a: {}, b: {GID.TOP_K: 0}", "row 'b': GID.TOP_K: expected an integer of at least 1"),
        ("a: {}, b: {VIS_PERIOD: 5}", "row 'b': VIS_PERIOD is 5, but training draws nothing"),
        ("a: {}, b: {GID.TOP_K: 10}", "row 'b': its config is the same as that of row 'a'"),
        ("a+b: {}, a-b: {GID.TOP_K: 5}, A b: {GID.TOP_K: 6}", "row 'A b': it would have the same"),
        ("a: {}, b: {CACHE.LOCATION: nowhere}", "row 'b': .*nowhere"),
        ("a: {}, b: {VIEWS.NUM: 5}", "row 'b': .* VIEWS.NUM: cached 2, config 5"),
        ("a: {}, b: {GID.ADAPTATION: none}", "row 'b': GID.ADAPTATION none needs equal channel"),
        ("a: {}, b: {DISTILL.METHODS: [pdk]}", "row 'b': .*no method 'pdk', did you mean pkd"),
        ("a: {}, b: {MODEL.WEIGHTS: no.pth}", "row 'b': weights not found: no.pth"),
        ("a: {}, b: {DATASET.FOLDER: nowhere}", "row 'b': .*nowhere"),
        ("a: {}, b: {SOLVER.ACCUMULATE: 2}", "row 'b': SOLVER.IMS_PER_BATCH is 3; expected a mul"),
        (
            "a: {}, b: {TEACHER: {SOURCE: live, WEIGHTS: no.pth}}",
            "row 'b': weights not found: no.pth",
        ),
        ("'+': {}", "row '\\+': expected a name with letters or digits"),
    ],
)
def test_a_row_that_could_not_be_trained_is_told_at_once(
    configure: Configure, capsys: Capture, rows: str, said: str
) -> None:
    last = refused(configure(), rows, capsys)
    assert re.search(rf"runs\.yaml:1: {said}", last), last


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["DATASETS.TEST", "()"], "DATASETS.TEST is empty, but a sweep compares AP"),
        (["SEED", "5"], "SEED cannot be set here: --seeds gives it"),
        (["MODEL.DEVICE", "cuda"], "MODEL.DEVICE is cuda, but"),
    ],
)
def test_an_option_that_makes_no_table_is_refused(
    configure: Configure, capsys: Capture, options: list[str], said: str
) -> None:
    if "cuda" in options and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert said in refused(configure(), "a: {}", capsys, *options)


@pytest.mark.parametrize("is_same", [True, False])
def test_all_rows_are_evaluated_on_the_same_images(
    configure: Configure, folder: Path, tmp_path: Path, is_same: bool
) -> None:
    other = tmp_path / "other"
    shutil.copytree(folder / "data" / "annotations", other / "annotations")
    (other / "images").symlink_to(folder / "data" / "images")
    changed = other / "annotations" / f"instances_{'train' if is_same else 'val'}.json"
    content = json.loads(changed.read_text())
    content["annotations"].pop()
    changed.write_text(json.dumps(content))
    rows = read_rows(write_runs(tmp_path, f"a: {{}}, b: {{DATASET.FOLDER: {other}}}"))
    args = argparse.Namespace(
        config_file=str(configure()), imports=[], opts=["TEACHER.SOURCE", "none"], seeds=1
    )
    if is_same:
        assert [run.row for run in plan_runs(args, rows, tmp_path / "sweep")] == ["a", "b"]
        return
    said = (
        f"row 'b': DATASET.FOLDER is '{other}', and '{folder / 'data'}' in row 'a': their "
        "annotations of folder_val differ, but all rows are evaluated on the same images; give it "
    )
    with pytest.raises(ValueError, match=re.escape(said)):
        plan_runs(args, rows, tmp_path / "sweep")


def record_of(path: Path, folder: Path, *overrides: Any) -> None:
    """Leave behind what a finished training of a config does."""
    cfg = load_config(str(path), overrides)
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(cfg.dump())
    (folder / "last_checkpoint").write_text("model_final.pth")
    RunRecord(
        config=run_digest(cfg), seed=cfg.SEED, ranks=1, train=(), test=(), libraries={}, parts=()
    ).write(folder)


def test_the_folder_of_a_run_of_another_config_is_refused_with_both_values(
    configure: Configure, capsys: Capture
) -> None:
    path = configure()
    folder = path.parent / "output" / "sweep_runs" / "a" / "seed_1"
    record_of(path, folder, "SEED", 1, "SOLVER.MAX_ITER", 6)
    last = refused(path, "a: {}", capsys)
    assert (
        f"{folder} holds a run of another config: SOLVER.MAX_ITER is 6 there and 3 here. Name "
        "another --output, or remove that folder" in last
    )


def test_a_second_sweep_in_one_folder_is_refused(configure: Configure, capsys: Capture) -> None:
    path = configure()
    with only_sweep(path.parent / "here"):
        last = refused(path, "a: {}", capsys, "--output", str(path.parent / "here"))
    assert "another sweep is at work in this folder" in last


def test_a_training_that_no_row_is_for_is_not_left_beside(
    configure: Configure, capsys: Capture
) -> None:
    path = configure()
    folder = path.parent / "output" / "sweep_runs" / "gone" / "seed_1"
    folder.mkdir(parents=True)
    with open(folder / "running.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.write('{"pid": 7}')
        lock.flush()
        last = refused(path, "a: {}", capsys)
    assert f"{folder}: a training of an earlier sweep is still at work there (process 7)" in last


def test_each_gpu_is_a_slot_of_its_own(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    cfg = load_config(str(configure()), ["MODEL.DEVICE", "cuda"])
    names = [slot.environment for slot in find_slots(cfg, None)]
    assert names == [{"CUDA_VISIBLE_DEVICES": "3"}, {"CUDA_VISIBLE_DEVICES": "5"}]
    assert len(find_slots(cfg, 1)) == 1
    with pytest.raises(ValueError, match="--jobs 3: expected at most the 2 GPUs"):
        find_slots(cfg, 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    assert [slot.name for slot in find_slots(cfg, None)] == ["GPU 0", "GPU 1"]
    with pytest.raises(ValueError, match=r"MODEL\.DEVICE is cuda:1, but a sweep gives each run"):
        find_slots(load_config(str(configure()), ["MODEL.DEVICE", "cuda:1"]), None)


def test_jobs_on_a_cpu_share_its_cores(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.delenv("OMP_NUM_THREADS")
    cfg = load_config(str(configure()))
    assert [slot.environment for slot in find_slots(cfg, 2)] == [{"OMP_NUM_THREADS": "4"}] * 2
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert [slot.environment for slot in find_slots(cfg, None)] == [{}]
