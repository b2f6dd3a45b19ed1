"""The commands `plan` and `status`, and errors as users see them."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from stage1_dump.__main__ import main
from storage import verify
from tests.fresh import stdout_of
from tests.stage1_dump.conftest import IMAGES, Configure
from tests.stage1_dump.helpers import dump, store_bytes

Capture = pytest.CaptureFixture[str]


def plan_json(capsys: Capture, *arguments: str) -> dict[str, Any]:
    assert main(["plan", "--json", *arguments]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_the_plan_announces_what_a_dump_writes(
    reference: Path, configure: Configure, capsys: Capture
) -> None:
    announced = plan_json(capsys, "--config-file", str(configure(VIEWS={"NUM": 2})))
    written = store_bytes(reference)
    sizes: dict[str, int] = {}
    for key, content in written.items():
        parts = key.split("/")
        if parts[0] == "buckets" and "c" in parts:
            sizes[parts[2]] = sizes.get(parts[2], 0) + len(content)
    exact = announced["presets"]["exact"]
    assert exact["array_bytes"] == sizes
    others = sum(map(len, written.values())) - sum(sizes.values())
    # Left out is what only a dump knows: the digest of the teacher and the numerics.
    assert exact["metadata_bytes"] == pytest.approx(others, rel=0.005)
    assert exact["total_bytes"] == sum(sizes.values()) + exact["metadata_bytes"]
    assert exact["objects"] == len(written)
    assert announced["records"] == 2 * len(IMAGES) and announced["views"] == 2
    assert announced["shards"] == len([key for key in written if key.startswith("commits/")])


def test_planning_writes_nothing_and_needs_neither_weights_nor_images(
    configure: Configure, images_folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    folder = tmp_path / "data"
    shutil.copytree(images_folder, folder)
    for path in (folder / "images").iterdir():
        path.write_bytes(b"")
    weights = str(tmp_path / "not_there.pth")
    config = configure(DATASET={"FOLDER": str(folder)}, TEACHER={"WEIGHTS": weights})
    before = sorted(tmp_path.rglob("*"))
    assert plan_json(capsys, "--config-file", str(config))["records"] == len(IMAGES)
    assert sorted(tmp_path.rglob("*")) == before


def test_every_preset_is_estimated_and_time_follows_the_rate(
    configure: Configure, capsys: Capture
) -> None:
    announced = plan_json(capsys, "--rate", "5", "--config-file", str(configure()))
    assert announced["seconds"] == len(IMAGES) / 5
    assert {"exact", "balanced"} <= announced["presets"].keys()
    total = {name: one["total_bytes"] for name, one in announced["presets"].items()}
    assert 0 < total["balanced"] < total["exact"]
    assert main(["plan", "--config-file", str(configure())]) == 0
    assert "exact (CACHE.PRESET)" in capsys.readouterr().out


def test_a_full_disk_is_announced(
    configure: Configure, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    announced = plan_json(capsys, "--config-file", str(configure()))
    assert announced["free_bytes"] == 1000
    assert "only 1.0 kB are free" in announced["warnings"][0]


def test_the_number_of_images_can_be_limited_to_the_first_by_id(
    configure: Configure, capsys: Capture
) -> None:
    config = configure()
    announced = plan_json(capsys, "--config-file", str(config), "DATASET.MAX_IMAGES", "4")
    assert announced["images"] == 4


def test_a_dump_needs_no_data_to_evaluate_on(configure: Configure) -> None:
    config = configure(DATASETS={"TRAIN": ["folder_train"], "TEST": ["coco_2017_val"]})
    assert main(["plan", "--config-file", str(config)]) == 0
    assert main(["run", "--config-file", str(config)]) == 0
    assert main(["check", "--sample", "1", "--config-file", str(config)]) == 0


def test_status_counts_what_is_committed(reference: Path, tmp_path: Path, capsys: Capture) -> None:
    store = tmp_path / "store"
    shutil.copytree(reference, store)
    assert main(["status", "--json", str(store)]) == 0
    whole = json.loads(capsys.readouterr().out)
    assert whole["complete"] and whole["done_records"] == whole["records"] == 2 * len(IMAGES)
    assert whole["rate"] > 0 and whole["active_ranks"] == 0
    next(iter((store / "commits").rglob("00000.json"))).unlink()
    assert main(["status", "--json", str(store)]) == 0
    partly = json.loads(capsys.readouterr().out)
    assert not partly["complete"]
    assert partly["done_shards"] == whole["shards"] - 1
    assert 0 < partly["done_records"] < partly["records"]


@pytest.mark.parametrize(
    ("nodes", "said"),
    [
        ({"CACHE": {"LOCATION": ""}}, "CACHE.LOCATION is empty"),
        ({"DATASETS": {"TRAIN": []}}, "there is nothing to train on"),
        (
            {"CACHE": {"PRESET": "tiny"}},
            "CACHE.PRESET 'tiny': expected one of balanced, compact, exact",
        ),
        ({"CACHE": {"LOCATION": "ftp://host/cache"}}, "CACHE.LOCATION: expected a local path"),
        ({"VIEWS": {"NUM": 10**9}}, "VIEWS.NUM: expected an integer"),
        ({"DATASETS": {"TRAIN": ["folder_val"]}}, "folder_val"),
        ({"TEACHER": {"WEIGHTS": "nowhere.pth"}}, "weights not found: nowhere.pth"),
        ({"INPUT": {"CROP": {"ENABLED": True}}}, "INPUT.CROP.ENABLED"),
        ({"TEACHER": {"CONFIG": "nowhere.yaml"}}, "nowhere.yaml"),
    ],
)
def test_wrong_input_is_refused_in_one_line_before_anything_is_written(
    configure: Configure, capsys: Capture, nodes: dict[str, dict[str, object]], said: str
) -> None:
    config = configure(**nodes)
    assert main(["run", "--config-file", str(config)]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and said in error
    assert not config.with_suffix("").exists()


def test_the_ranks_of_a_dump_are_told_what_to_import(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(
        "stage1_dump.launch.run_ranks", lambda count, options, **_: started.append(options) or 0
    )
    monkeypatch.setitem(sys.modules, "my_data", sys)
    config = ["--config-file", str(configure())]
    assert main(["run", "--num-gpus", "2", "--import", "my_data", *config]) == 0
    assert started == [["--import=my_data", *config]]


def test_ranks_are_started_again_only_where_there_are_some(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    started: list[int] = []
    monkeypatch.setattr(
        "stage1_dump.launch.run_ranks",
        lambda count, options, *, max_restarts: started.append(max_restarts) or 0,
    )
    config = ["--config-file", str(configure())]
    for options in ([], ["--max-restarts", "0"]):
        assert main(["run", "--num-gpus", "2", *options, *config]) == 0
    assert started == [3, 0]
    assert main(["run", "--max-restarts", "2", *config]) == 1
    assert "--max-restarts: expected with --num-gpus of 2 or more" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["plan", "check"])
def test_the_other_commands_refuse_the_same(
    configure: Configure, capsys: Capture, command: str
) -> None:
    config = str(configure(CACHE={"LOCATION": "ftp://host/cache"}))
    assert main([command, "--config-file", config]) == 1
    assert "CACHE.LOCATION: expected a local path, or a URL of s3://" in capsys.readouterr().err


def test_a_cache_that_is_not_there_is_an_error(tmp_path: Path, capsys: Capture) -> None:
    assert main(["status", str(tmp_path / "none")]) == 1
    assert "no teacher cache here" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [[], ["run"], ["plan", "--rate", "0", "--config-file", "x"], ["status"]]
)
def test_wrong_use_has_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


def test_the_written_plan_is_what_verify_expects(
    reference: Path, configure: Configure, tmp_path: Path
) -> None:
    output = tmp_path / "plans" / "plan.json"
    config = str(configure(VIEWS={"NUM": 2}))
    assert main(["plan", "--output", str(output), "--config-file", config]) == 0
    plan = json.loads(output.read_text())
    # The plan leaves the numerics open: no config says which machine dumps.
    assert "numerics" not in plan["identity"]
    assert verify(reference, expect=plan).problems == ()
    plan["identity"]["augmentation"]["seed"] += 1
    (problem,) = verify(reference, expect=plan).problems
    assert problem.where == "augmentation.seed"
    plan["identity"]["augmentation"]["seed"] -= 1
    plan["shards"][0]["sha256"] = "0" * 64
    where = {problem.where for problem in verify(reference, expect=plan).problems}
    assert any(plan["shards"][0]["bucket"] in place for place in where)


def test_a_plan_without_weights_leaves_the_teacher_open(
    configure: Configure, tmp_path: Path
) -> None:
    output = tmp_path / "plan.json"
    config = str(configure(TEACHER={"WEIGHTS": "nowhere.pth"}))
    assert main(["plan", "--output", str(output), "--config-file", config]) == 0
    identity = json.loads(output.read_text())["identity"]
    assert not {"teacher", "numerics"} & identity.keys()
    decided = {"dataset", "augmentation", "preset", "signals", "levels", "shard_records"}
    assert decided <= identity.keys()


def test_status_imports_nothing_that_takes_seconds(reference: Path) -> None:
    script = f"""
import sys
from stage1_dump.__main__ import main
assert main(["status", {str(reference)!r}]) == 0
slow = {{"torch", "torchvision", "detectron2", "pycocotools", "matplotlib"}} & set(sys.modules)
assert not slow, slow
"""
    assert "20 of 20 records" in stdout_of([sys.executable, "-c", script])


@pytest.mark.parametrize(
    ("command", "phases"),
    [
        (["plan", "--measure", "2"], {"measure speed", "measure sizes"}),
        (["run"], {"dump"}),
        (["check"], {"check"}),
        (["evaluate"], {"view 0", "AP of view 0"}),
    ],
)
def test_long_phases_report_without_a_terminal(
    command: list[str],
    phases: set[str],
    configure: Configure,
    images_folder: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = configure()
    if command[0] in ("check", "evaluate"):
        dump(config)
    capsys.readouterr()
    monkeypatch.setattr("storage.progress.LINE_EVERY_SEC", 0.0)
    monkeypatch.setattr("dataset.coco_json._CHARACTERS_A_STEP", 1)
    monkeypatch.setattr("dataset.reading._memory", {})
    arguments = ["--config-file", str(config)]
    if command == ["evaluate"]:
        annotations = images_folder / "annotations/instances_train.json"
        arguments = [str(config.with_suffix("")), "--annotations", str(annotations)]
    assert main([*command, *arguments]) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.endswith(" left")]
    reported = {line.partition(": ")[0] for line in lines}
    assert reported == phases | {"reading instances_train.json"}
