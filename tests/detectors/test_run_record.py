"""`run.json`: whose metrics lie beside it, and what came out."""

from __future__ import annotations

import io
import json
import multiprocessing
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from configs.loader import load_config
from dataset.scenes import CLASS_NAMES
from detectors.__main__ import main
from detectors.run_record import known_config, read_record, run_digest
from detectors.trainer import Trainer
from tests.detectors.plain import write_plain
from tests.fresh import files_no_larger_than


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Something is detected, so that there are figures of each class.
    head = {"SCORE_THRESH_TEST": 0.0, "NUM_CLASSES": len(CLASS_NAMES), "NUM_CONVS": 1}
    path = write_plain(tmp_path_factory.mktemp("record"))
    content = yaml.safe_load(path.read_text())
    content["MODEL"]["RETINANET"] |= head
    path.write_text(yaml.safe_dump(content))
    return path


def train(config: Path, folder: Path, *overrides: str, resume: bool = False) -> int:
    options = ["--resume"] if resume else []
    keys = ["OUTPUT_DIR", str(folder), *overrides]
    return main(["train", *options, "--config-file", str(config), *keys])


def test_a_finished_run_tells_its_config_and_its_results(config: Path, tmp_path: Path) -> None:
    assert train(config, tmp_path) == 0
    record = read_record(tmp_path)
    assert record is not None and record.finished and record.results is not None
    assert record.config == run_digest(load_config(str(config)))
    assert (record.seed, record.ranks, record.iterations) == (1, 1, 2)
    assert record.libraries["torch"] == torch.__version__
    # By class too, and as the metrics have it.
    *_, last = (tmp_path / "metrics.json").read_text().splitlines()
    logged = json.loads(last)
    # Not those that the images have none of.
    classes = {name for name in record.results["folder_val"] if name.startswith("AP-")}
    assert classes and classes <= {f"AP-{name}" for name in CLASS_NAMES}
    assert record.results == {
        "folder_val": {
            name.partition("/")[2]: value
            for name, value in logged.items()
            if name.startswith("folder_val/")
        }
    }


def test_a_run_that_fails_is_not_finished(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "run_step", None)
    with pytest.raises(TypeError):
        train(config, tmp_path)
    record = read_record(tmp_path)
    assert record is not None and not record.finished and record.results is None


def train_with_a_full_disk(*args: Any, **options: Any) -> None:
    sys.stdout = sys.stderr = io.StringIO()  # pytest's own files would be full too
    with files_no_larger_than(1000):
        sys.exit(train(*args, **options))


@pytest.mark.parametrize("resume", [False, True])
def test_a_full_disk_leaves_no_half_of_a_config(config: Path, tmp_path: Path, resume: bool) -> None:
    if resume:
        assert train(config, tmp_path) == 0
    before = [path.read_text() for path in tmp_path.glob("config*")]
    child = multiprocessing.get_context("fork").Process(
        target=train_with_a_full_disk,
        args=(config, tmp_path, "SOLVER.MAX_ITER", "3"),
        kwargs={"resume": resume},
    )
    child.start()
    child.join()
    assert child.exitcode == 1
    assert [path.read_text() for path in tmp_path.glob("config*")] == before


def test_lines_of_a_run_resumed_with_another_config_are_told_apart(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config, tmp_path) == 0
    assert train(config, tmp_path, "SOLVER.MAX_ITER", "3", resume=True) == 0
    warning = "goes on with another config than it had: SOLVER.MAX_ITER is 2 there and 3 here"
    assert warning in capsys.readouterr().out
    kept = (tmp_path / "config.yaml").read_text()
    assert train(config, tmp_path, "SOLVER.BASE_LR", "0.5", resume=True) == 1
    assert (tmp_path / "config.yaml").read_text() == kept  # not that of a refused attempt
    # One cut short tells nothing.
    (tmp_path / "config.yaml").write_text("SOLVER: {")
    assert train(config, tmp_path, "SOLVER.MAX_ITER", "3", "SEED", "2", resume=True) == 0
    assert "another config than it had: its digest is" in capsys.readouterr().out
    assert train(config, tmp_path, "SOLVER.MAX_ITER", "3", "SEED", "2", resume=True) == 0
    assert "another config" not in capsys.readouterr().out
    record = read_record(tmp_path)
    assert record is not None
    assert [part["first_iteration"] for part in record.parts] == [0, 2, 3]
    three = ["SOLVER.MAX_ITER", 3]
    digests = [run_digest(load_config(str(config), x)) for x in ([], three, [*three, "SEED", 2])]
    assert [part["config"] for part in record.parts] == digests


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("OUTPUT_DIR", "elsewhere", True),
        ("DATALOADER.NUM_WORKERS", 2, True),
        ("SOLVER.CHECKPOINT_PERIOD", 7, True),
        ("SEED", 2, False),
        ("SOLVER.BASE_LR", 0.5, False),
        ("GID.TOP_K", 5, False),
    ],
)
def test_runs_of_one_digest_compute_the_same(
    config: Path, key: str, value: object, same: bool
) -> None:
    digests = {run_digest(load_config(str(config), keys)) for keys in ([], [key, value])}
    assert (len(digests) == 1) is same


def test_a_saved_config_is_known_again(config: Path) -> None:
    cfg = load_config(str(config))
    assert known_config(yaml.safe_load(cfg.dump())) == known_config(cfg)


def test_a_damaged_record_is_refused_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json: expected what a training writes"):
        read_record(tmp_path)
