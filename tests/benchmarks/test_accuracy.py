"""What the accuracy benchmark makes of the APs that it measured."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.accuracy import Accuracy, measure, students_of
from benchmarks.accuracy import main as accuracy
from benchmarks.demo import main as demo
from benchmarks.families import FAMILIES
from benchmarks.pipeline import Pipeline, StepError
from configs.loader import load_config, settings
from dataset.synthetic import SyntheticConfig, write_synthetic
from detectors.families import num_classes

Main = Callable[[list[str]], int]


def found(**students: list[float]) -> Accuracy:
    by_seed = {name.replace("_", " "): dict(enumerate(aps, 1)) for name, aps in students.items()}
    return Accuracy(teacher=50.0, students=by_seed)


def verdicts(result: Accuracy, at_least: float = 3.0) -> dict[str, tuple[float, bool]]:
    return {row.name: (pytest.approx(row.value), row.reached) for row in result.rows(at_least)}


def test_means_and_the_worst_seed_decide() -> None:
    result = found(
        ground_truth=[30, 34], live=[40, 42], balanced=[39.5, 41.7], compact=[45.0, 33.0]
    )
    assert verdicts(result, at_least=7.5) == {
        "balanced - ground truth, AP": (8.6, True),
        "balanced - ground truth, AP of the worst seed": (7.7, True),
        "compact - ground truth, AP": (7.0, False),
        "compact - ground truth, AP of the worst seed": (-1.0, False),
        "balanced - live, AP": (-0.4, True),
        "|balanced - live, AP|, half its 95% interval": (0.4, True),
        "compact - live, AP": (-2.0, False),
        "|compact - live, AP|, half its 95% interval": (2.0, True),
    }
    lines = result.table().splitlines()
    assert lines[2].split() == ["ground", "truth", "30.00", "34.00", "32.00"]
    assert "live - ground truth: +9.00, 95% interval -3.71 to +21.71" in lines
    content = json.loads(json.dumps(result.to_json(result.rows(7.0))))
    assert content["differences"]["balanced - live"]["mean"] == pytest.approx(-0.4)
    assert all(row["reached"] for row in content["rows"][:3])


def test_a_student_surely_above_the_live_one_is_not_near_it() -> None:
    result = found(ground_truth=[30, 30, 30], live=[40, 40, 40], balanced=[41, 41.1, 41])
    assert [reached for _, reached in verdicts(result).values()] == [True, True, True, False]


def test_one_seed_has_no_interval() -> None:
    result = found(ground_truth=[30], live=[40], balanced=[41])
    assert [reached for _, reached in verdicts(result).values()] == [True, True, True]
    assert "balanced - live: +1.00, one seed" in result.table()


def test_a_cache_without_some_levels_is_compared_and_has_no_limit() -> None:
    students = students_of(["balanced"], ["p3", "p4"], live=False)
    names = [one.name for one in students]
    assert names == ["ground truth", "balanced", "balanced p3 p4"]
    result = Accuracy(teacher=50.0, students={name: {1: 30.0, 2: 31.0} for name in names})
    assert "balanced p3 p4 - ground truth: +0.00" in result.table()
    assert len(result.rows(3.0)) == 2


def test_a_killed_command_goes_on_with_the_runs_that_are_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_synthetic(tmp_path / "data", SyntheticConfig(train=2, val=1, size=64), workers=1)
    job = Pipeline(folder=tmp_path / "job", data=tmp_path / "data")
    ran: list[str] = []
    killed = {"live_2"}

    def run(self: Pipeline, name: str, *_: object, **__: object) -> str:
        if name in killed:
            raise StepError("killed")
        ran.append(name)
        if name == "teacher":
            self.teacher_weights.parent.mkdir(parents=True)
            self.teacher_weights.touch()
        return json.dumps({"folder_val": {"AP": len(ran)}})

    monkeypatch.setattr(Pipeline, "run", run)
    students = students_of(["balanced"], [], live=True)
    with pytest.raises(StepError):
        measure(job, [1, 2], students)
    before = [name for name in ran if name.startswith("evaluate")]
    assert "evaluate teacher" in before

    ran.clear()
    killed.clear()
    measured = measure(job, [1, 2], students)
    again = [name for name in ran if name.startswith("evaluate")]
    assert "teacher" not in ran
    assert sorted(before + again) == sorted(set(before + again))
    assert len(before + again) == 1 + 2 * 3
    assert measure(job, [1], students).students["live"][1] == measured.students["live"][1]

    job.overrides = {"SOLVER.MAX_ITER": 2}
    with pytest.raises(ValueError, match=r"other configs than those of now \(MAX_ITER: 2\)"):
        measure(job, [1, 2], students)


@pytest.mark.parametrize(("main", "option"), [(accuracy, "--photographs"), (demo, "--data")])
def test_data_without_validation_images_are_refused_before_anything_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], main: Main, option: str
) -> None:
    output, data = tmp_path / "output", tmp_path / "data"
    (output / "teacher").mkdir(parents=True)
    (data / "annotations").mkdir(parents=True)
    (data / "annotations" / "instances_train.json").write_text("{}")
    assert main(["--output", str(output), option, str(data)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: {data}/annotations/instances_val.json: there is no such file")
    assert [path.name for path in output.iterdir()] == ["teacher"]


@pytest.mark.parametrize("folder", ["synthetic", "photographs"])
@pytest.mark.parametrize(
    ("family", "classes_key"),
    [
        ("retinanet", "MODEL.RETINANET.NUM_CLASSES"),
        ("fcos", "MODEL.FCOS.NUM_CLASSES"),
        ("faster_rcnn", "MODEL.ROI_HEADS.NUM_CLASSES"),
    ],
)
def test_the_configs_of_every_family_fit_the_data(
    tmp_path: Path, family: str, classes_key: str, folder: str
) -> None:
    write_synthetic(tmp_path / "data", SyntheticConfig(train=2, val=1, size=64), workers=1)
    base = getattr(FAMILIES[family], folder)
    job = Pipeline(folder=tmp_path / "job", data=tmp_path / "data", base=base)
    job.write_configs()
    cfg = load_config(str(job.config("distill")))
    teacher = load_config(cfg.TEACHER.CONFIG)
    assert settings(cfg).views.scales == teacher.INPUT.MIN_SIZE_TRAIN
    assert num_classes(teacher) == num_classes(cfg) == (classes_key, 5)
    assert f"{teacher.OUTPUT_DIR}/model_final.pth" == cfg.TEACHER.WEIGHTS


def test_photographs_alone_are_trained_on_by_a_gpu_as_many_at_once_as_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = []

    def measured(job: Pipeline, *_: object, at_once: int) -> Accuracy:
        jobs.append((job.folder.name, job.overrides, at_once))
        return Accuracy(teacher=50.0, students={"ground truth": {1: 30.0}})

    monkeypatch.setattr("benchmarks.accuracy.check_data", lambda folder: None)
    monkeypatch.setattr("benchmarks.accuracy.measure", measured)
    folders = ["--output", str(tmp_path), "--photographs", str(tmp_path / "cells")]
    accuracy([*folders, "--no-synthetic", "--gpu", "--at-once", "4"])
    assert jobs == [("cells", {"MODEL.DEVICE": "cuda", "DATALOADER.NUM_WORKERS": 2}, 4)]


def test_nothing_to_train_on_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        accuracy(["--no-synthetic"])
    assert "--no-synthetic leaves nothing without --photographs FOLDER" in capsys.readouterr().err
