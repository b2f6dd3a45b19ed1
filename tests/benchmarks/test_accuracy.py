"""What the accuracy benchmark makes of the APs that it measured."""

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.accuracy import Accuracy
from benchmarks.accuracy import main as accuracy
from benchmarks.demo import main as demo
from benchmarks.pipeline import Pipeline
from configs.loader import load_config, settings
from dataset.synthetic import SyntheticConfig, write_synthetic
from detectors.families import num_classes

Main = Callable[[list[str]], int]


def found(**students: list[float]) -> Accuracy:
    by_seed = {name.replace("_", " "): dict(enumerate(aps, 1)) for name, aps in students.items()}
    return Accuracy(teacher=50.0, students=by_seed)


def test_the_means_decide() -> None:
    result = found(
        ground_truth=[30, 34], live=[40, 42], balanced=[39.5, 41.7], compact=[39.8, 40.0]
    )
    verdicts = {row.name: (row.value, row.reached) for row in result.rows(at_least=8.0)}
    assert verdicts == {
        "balanced - ground truth, AP": (pytest.approx(8.6), True),
        "compact - ground truth, AP": (pytest.approx(7.9), False),
        "|balanced - live|, AP": (pytest.approx(0.4), True),
        "|compact - live|, AP": (pytest.approx(1.1), False),
    }
    assert result.table().splitlines()[2].split() == ["ground", "truth", "30.00", "34.00", "32.00"]
    assert [row["reached"] for row in result.to_json(result.rows(7.0))["rows"]][:2] == [True, True]


def test_a_student_far_above_the_live_one_is_not_near_it() -> None:
    rows = found(ground_truth=[30], live=[40], balanced=[41]).rows(at_least=3.0)
    assert [row.reached for row in rows] == [True, False]


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


@pytest.mark.parametrize("base", ["demo", "demo_fcos", "photographs"])
def test_its_configs_fit_the_data(tmp_path: Path, base: str) -> None:
    write_synthetic(tmp_path / "data", SyntheticConfig(train=2, val=1, size=64), workers=1)
    job = Pipeline(folder=tmp_path / "job", data=tmp_path / "data", base=base)
    job.write_configs()
    cfg = load_config(str(job.config("distill")))
    teacher = load_config(cfg.TEACHER.CONFIG)
    assert settings(cfg).views.scales == teacher.INPUT.MIN_SIZE_TRAIN
    assert num_classes(teacher) == num_classes(cfg)
    assert num_classes(cfg) == (f"MODEL.{'FCOS' if 'fcos' in base else 'RETINANET'}.NUM_CLASSES", 5)
    assert f"{teacher.OUTPUT_DIR}/model_final.pth" == cfg.TEACHER.WEIGHTS
