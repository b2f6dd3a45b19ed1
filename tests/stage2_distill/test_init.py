"""First configs for a data folder: what is chosen, that every command takes it, and refusals."""

from __future__ import annotations

import importlib
import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

import stage1_dump.__main__
from configs.loader import load_config, settings, teacher_config
from dataset.reading import load_annotations
from dataset.synthetic import SyntheticConfig, write_synthetic
from detectors.families import family_of
from stage2_distill.__main__ import main
from stage2_distill.init.choices import Choices, choose
from stage2_distill.init.command import NAMES
from stage2_distill.init.families import KINDS
from stage2_distill.init.text import Places, distill_text
from tests.tiny import DETECTOR

ROOT = Path(__file__).resolve().parents[2]
ZOO = "model_zoo://COCO-Detection"

# What makes a detector of a few thousand weights of one that was written, to be trained a step.
SMALL: dict[str, Any] = {
    "MODEL": {
        "DEVICE": "cpu",
        "WEIGHTS": "",
        "BACKBONE": {"FREEZE_AT": 0},
        "RESNETS": {
            key: value
            for key, value in DETECTOR["MODEL"]["RESNETS"].items()
            if key != "OUT_FEATURES"
        },
        "FPN": {"OUT_CHANNELS": 8},
        "ROI_BOX_HEAD": {"FC_DIM": 16},
    },
    "INPUT": {
        "MIN_SIZE_TRAIN": [64],
        "MAX_SIZE_TRAIN": 64,
        "MIN_SIZE_TEST": 64,
        "MAX_SIZE_TEST": 64,
    },
    "DATALOADER": {"NUM_WORKERS": 0},
    "SOLVER": {"IMS_PER_BATCH": 2, "MAX_ITER": 1, "STEPS": []},
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of 64 px, to train on and to evaluate on."""
    folder = tmp_path_factory.mktemp("data") / "synthetic"
    write_synthetic(folder, SyntheticConfig(train=5, val=2, size=64))
    return folder


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What commands write beside the working directory goes where the test's files are."""
    monkeypatch.chdir(tmp_path)


def written(data: Path, *options: str) -> Path:
    assert main(["init", "--data", str(data), "--output", "mine", *options]) == 0
    return Path("mine")


def shrink(path: Path) -> None:
    """Change a config that was written, as its user may."""
    content = yaml.safe_load(path.read_text())
    update(content, SMALL)
    if "FCOS" in content["MODEL"]:
        content["MODEL"]["FCOS"] |= {"NORM": "", "NUM_CONVS": 1}
    path.write_text(yaml.safe_dump(content))


def update(node: dict[str, Any], changes: Mapping[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, Mapping):
            update(node.setdefault(key, {}), value)
        else:
            node[key] = value


@pytest.mark.parametrize("family", list(KINDS))
def test_what_is_written_goes_through_the_three_commands(
    family: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = written(data, "--family", family)
    script = (folder / "run.sh").read_text()
    printed = capsys.readouterr().out
    assert all(f"  {line}\n" in printed for line in script.splitlines()[-3:])
    steps = re.findall(r"^python -m (\w+) (.*)$", script, re.MULTILINE)
    assert [module for module, _ in steps] == ["detectors", "stage1_dump", "stage2_distill"]
    distill = str(folder / "distill.yaml")
    assert stage1_dump.__main__.main(["plan", "--config-file", distill]) == 0
    assert main(["train", "--config-file", distill]) == 1
    assert "output/mine/cache: no teacher cache here" in capsys.readouterr().err
    shutil.rmtree("output")

    for name in ("teacher", "student"):
        shrink(folder / f"{name}.yaml")
    content = yaml.safe_load((folder / "distill.yaml").read_text())
    content["VIEWS"] |= {"SCALES": [64], "MAX_SIZE": 64, "NUM": 1}
    (folder / "distill.yaml").write_text(yaml.safe_dump(content))
    for module, arguments in steps * 2:  # given again, it finds everything done
        assert importlib.import_module(f"{module}.__main__").main(shlex.split(arguments)) == 0
    assert Path("output/mine/distill/student_final.pth").is_file()


def test_the_script_ends_with_the_first_command_that_fails(data: Path) -> None:
    written(data)
    Path("python").write_text("#!/bin/sh\necho $2 >> ran\ntest $2 != stage1_dump\n")
    Path("python").chmod(0o755)
    done = subprocess.run(["sh", "mine/run.sh"], env={"PATH": f"{Path.cwd()}:/usr/bin:/bin"})
    assert done.returncode == 1
    assert Path("ran").read_text().split() == ["detectors", "stage1_dump"]


@pytest.mark.parametrize(
    ("family", "teacher"),
    [
        *((family, None) for family in KINDS),
        ("retinanet", f"{ZOO}/retinanet_R_101_FPN_3x.yaml"),
        ("faster_rcnn", f"{ZOO}/faster_rcnn_X_101_32x8d_FPN_3x.yaml"),
        (
            "faster_rcnn",
            "model_zoo://COCO-InstanceSegmentation/mask_rcnn_R_101_FPN_3x.yaml",
        ),
    ],
)
def test_teacher_and_student_fit_each_other_and_the_data(
    family: str, teacher: str | None, data: Path
) -> None:
    folder = written(data, "--family", family, *(["--teacher", teacher] if teacher else []))
    alone = load_config(str(folder / "teacher.yaml"))
    student = load_config(str(folder / "student.yaml"))
    cfg = load_config(str(folder / "distill.yaml"))
    settings(cfg)
    paired = teacher_config(cfg)
    assert family_of(cfg).pairing(paired) == family_of(cfg).pairing(cfg)
    for key in ("DATASET", "DATASETS", "INPUT", "SOLVER", "TEST"):
        assert alone[key] == student[key] == cfg[key]
    assert alone.DATASETS.TEST == ("folder_val",)
    assert {alone.MODEL.RESNETS.DEPTH, student.MODEL.RESNETS.DEPTH} == {101, 50}
    assert not alone.MODEL.MASK_ON
    source = teacher.partition("//")[2].removesuffix(".yaml") if teacher else "MSRA/R-101.pkl"
    assert source in alone.MODEL.WEIGHTS
    assert cfg.VIEWS.SCALES == student.INPUT.MIN_SIZE_TRAIN
    assert Path(cfg.TEACHER.WEIGHTS) == Path(alone.OUTPUT_DIR, "model_final.pth")
    assert len({alone.OUTPUT_DIR, student.OUTPUT_DIR, cfg.OUTPUT_DIR, cfg.CACHE.LOCATION}) == 4


@pytest.mark.parametrize(("is_there", "device"), [(True, "cuda"), (False, "cpu")])
def test_the_device_is_the_one_that_is_there(
    is_there: bool,
    device: str,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: is_there)
    cfg = load_config(str(written(data) / "student.yaml"))
    assert str(cfg.MODEL.DEVICE) == device
    assert ("No GPU was found" in capsys.readouterr().out) is not is_there


def test_a_view_that_is_not_to_be_flipped_is_stated_as_the_comment_says(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    distill = str(written(data) / "distill.yaml")
    assert "RANDOM_FLIP: none" in Path(distill).read_text()
    overrides = ["VIEWS.FLIP", "0.0", "INPUT.RANDOM_FLIP", "none"]
    assert stage1_dump.__main__.main(["plan", "--config-file", distill, *overrides]) == 0
    assert "5 images x 4 views" in capsys.readouterr().out


def test_configs_inside_of_the_project_name_their_base_relative_to_themselves(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = tmp_path / "configs"
    shipped.mkdir()
    (shipped / "base_fcos.yaml").write_text("VERSION: 2\n")
    monkeypatch.setattr("stage2_distill.init.command._SHIPPED", shipped)
    main(["init", "--data", str(data), "--output", "configs/mine", "--family", "fcos"])
    assert "_BASE_: ../base_fcos.yaml\n" in Path("configs/mine/teacher.yaml").read_text()


def test_roboflow_s_layout_is_read_and_its_splits_are_named(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "export"
    for split, exported in (("train", "train"), ("val", "valid")):
        shutil.copytree(data / "images", folder / exported)
        annotations = data / "annotations" / f"instances_{split}.json"
        shutil.copy(annotations, folder / exported / "_annotations.coco.json")
    cfg = load_config(str(written(folder) / "distill.yaml"))
    assert (cfg.DATASETS.TRAIN, cfg.DATASETS.TEST) == (("folder_train",), ("folder_valid",))


@pytest.mark.parametrize("name", ["2024", "my data", "größe", "a: b #c", "'a'", "true", "null"])
def test_any_name_of_a_folder_may_be_given(name: str, data: Path) -> None:
    Path(name).symlink_to(data)
    cfg = load_config(str(written(Path(name)) / "student.yaml"))
    assert Path(cfg.DATASET.FOLDER) == Path(name)


def test_a_place_whose_results_would_not_be_found_again_is_refused(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "OUTPUT_DIR output/a?b: detectron2 takes a path for a URL" in refusal(
        capsys, "--data", str(data), "--output", "a?b"
    )


def test_names_of_categories_cannot_break_the_comments(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    shutil.copytree(data, folder)
    for path in (folder / "annotations").iterdir():
        content = json.loads(path.read_text())
        content["categories"][0]["name"] = "a\nMODEL: b\x85c\u2028d"
        path.write_text(json.dumps(content))
    assert load_config(str(written(folder) / "teacher.yaml")).MODEL.RETINANET.NUM_CLASSES == 5


def refusal(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["init", *arguments]) == 1
    (line,) = [one for one in capsys.readouterr().err.splitlines() if not one.startswith("note:")]
    assert not any(Path("mine", name).exists() for name in NAMES)
    return line


def test_a_folder_without_annotations_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "there is no annotations/instances_<split>.json" in refusal(
        capsys, "--data", str(tmp_path), "--output", "mine"
    )


@pytest.mark.parametrize("left", ["train", "val"])
def test_one_split_alone_is_refused_with_the_command_that_makes_two(
    left: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "one"
    shutil.copytree(data, folder)
    (folder / "annotations" / f"instances_{'val' if left == 'train' else 'train'}.json").unlink()
    line = refusal(capsys, "--data", str(folder), "--output", "mine")
    assert f"instances_{left}.json; `python -m dataset split --annotations FILE" in line


def test_objects_are_needed(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "empty"
    shutil.copytree(data, folder)
    path = folder / "annotations" / "instances_train.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "annotations": []}))
    line = refusal(capsys, "--data", str(folder), "--output", "mine")
    assert "instances_train.json: there is no object to train on" in line


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (("--family", "yolo"), "--family yolo: expected one of retinanet, fcos, faster_rcnn"),
        (("--teacher", "mine.yaml"), "--teacher mine.yaml: expected model_zoo://NAME"),
        (("--teacher", "model_zoo://none.yaml"), "detectron2 ships no none.yaml"),
        (
            ("--teacher", f"{ZOO}/faster_rcnn_R_101_FPN_3x.yaml"),
            "expected RetinaNet on build_retinanet_resnet_fpn_backbone, got GeneralizedRCNN on",
        ),
        (
            ("--family", "faster_rcnn", "--teacher", f"{ZOO}/faster_rcnn_R_101_C4_3x.yaml"),
            "has no pyramid",
        ),
    ],
)
def test_what_is_no_family_or_no_teacher_of_it_is_refused(
    options: tuple[str, ...], expected: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert expected in refusal(capsys, "--data", str(data), "--output", "mine", *options)


def test_configs_that_are_there_stay_as_they_are(
    data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("mine").mkdir()
    Path("mine/student.yaml").write_text("mine")
    assert main(["init", "--data", str(data), "--output", "mine"]) == 1
    assert "but it holds student.yaml; name another one" in capsys.readouterr().err
    assert [one.read_text() for one in Path("mine").iterdir()] == ["mine"]


def places_of_results(folder: str) -> set[str]:
    cfg = load_config(f"{folder}/distill.yaml")
    student = load_config(f"{folder}/student.yaml")
    return {str(cfg.OUTPUT_DIR), str(cfg.CACHE.LOCATION), cfg.TEACHER.WEIGHTS, student.OUTPUT_DIR}


def test_folders_of_one_name_have_results_of_their_own(data: Path, tmp_path: Path) -> None:
    named = ("a/v1", "b/v1", "v1", str(tmp_path / "c/v1"), str(tmp_path.parent / "elsewhere/v1"))
    for folder in named:
        assert main(["init", "--data", str(data), "--output", folder]) == 0
    found = [places_of_results(folder) for folder in named]
    assert len(set.union(*found)) == 4 * len(named)
    assert "output/a/v1/cache" in found[0] and "output/c/v1/cache" in found[3]
    assert all(one.startswith("output/") for one in set.union(*found))


@pytest.mark.parametrize("left", ["teacher", "student", "cache", "distill"])
def test_results_of_earlier_configs_are_not_gone_on_from(
    left: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("output/mine", left).mkdir(parents=True)
    line = refusal(capsys, "--data", str(data), "--output", "mine")
    assert line == (
        "error: --output mine: its results belong into output/mine, expected without any, but it "
        f"holds {left}, which run.sh would go on from; name another one, or delete them"
    )


def chosen(
    *,
    size: tuple[int, int] = (640, 480),
    box: tuple[float, float] = (100, 100),
    other_box: tuple[float, float] | None = None,
    images: int = 100,
    sizes_per_level: int = 3,
) -> Choices:
    """What is chosen for images of one width and height, with one box each; every other box may
    differ.
    """
    boxes = (box, other_box or box)
    content = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "width": size[0], "height": size[1]}
            for n in range(images)
        ],
        "annotations": [
            {"id": n, "image_id": n, "category_id": 1, "bbox": [0, 0, *boxes[n % 2]]}
            for n in range(images)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }
    path = Path("chosen.json")
    path.write_text(json.dumps(content))
    return choose(load_annotations(path), 10, sizes_per_level=sizes_per_level, rate_for_16=0.01)


@pytest.mark.parametrize(
    ("size", "scales", "max_size"),
    [
        ((640, 480), (384, 448, 480), 640),
        ((64, 64), (256, 288, 320), 320),
        ((3000, 4000), (640, 704, 800), 1067),
        ((5000, 1000), (640, 704, 800), 1334),
    ],
)
def test_views_have_the_size_of_the_images_within_bounds(
    size: tuple[int, int], scales: tuple[int, ...], max_size: int
) -> None:
    found = chosen(size=size)
    assert (found.scales, found.max_size) == (scales, max_size)


def test_boxes_are_measured_as_views_show_them() -> None:
    assert chosen(size=(1600, 1600), box=(64, 100)).box_sizes == pytest.approx((40, 40, 40))


@pytest.mark.parametrize(
    ("side", "per_level", "first", "last"),
    [(10, 3, [8, 10.1, 12.7], [128, 161.3, 203.2]), (20, 1, [16], [256]), (4, 1, [8], [128])],
)
def test_anchors_are_halved_until_they_reach_small_boxes(
    side: float, per_level: int, first: list[float], last: list[float]
) -> None:
    found = chosen(box=(side, side), sizes_per_level=per_level).anchors
    assert found is not None and len(found) == 5
    assert found[0] == pytest.approx(first) and found[-1] == pytest.approx(last)


def test_anchors_are_further_apart_where_boxes_are_small_and_large() -> None:
    found = chosen(size=(800, 800), box=(12, 12), other_box=(600, 600)).anchors
    assert found is not None
    assert found[0][0] == 16 and found[-1][0] == 512
    assert all(row[0] < row[1] < row[2] for row in found)
    assert found[1][0] / found[0][0] == pytest.approx(32**0.25, rel=0.01)


def test_anchors_that_reach_are_detectron2_s_and_fcos_has_none() -> None:
    assert chosen(box=(23, 23)).anchors is None
    assert chosen(box=(4, 4), sizes_per_level=0).anchors is None


@pytest.mark.parametrize(
    ("images", "batch", "epochs", "views"),
    [(3, 2, 100, 4), (300, 8, 100, 4), (1000, 8, 40, 4), (9000, 8, 12, 2)],
)
def test_small_sets_are_shown_more_often(images: int, batch: int, epochs: int, views: int) -> None:
    found = chosen(images=images)
    assert (found.batch, found.epochs, found.num_views) == (batch, epochs, views)
    assert found.learning_rate == pytest.approx(0.01 * batch / 16)
    assert found.steps == -(-images * epochs // batch)
    assert 0 < found.decays[0] < found.decays[1] < found.steps
    assert found.is_small


def test_small_objects_take_part_in_the_selection() -> None:
    assert (chosen().roi_size, chosen().min_side) == (10, 10.0)
    found = chosen(box=(8, 9))
    assert (found.roi_size, found.min_side) == (5, 4.0)


@pytest.mark.parametrize("images", [100, 10_000])
def test_the_paper_s_loss_weights_are_for_large_sets_alone(images: int) -> None:
    places = Places(data="d", train="train", val="val", results="output/mine", configs="mine")
    text = distill_text(KINDS["retinanet"], chosen(images=images), places)
    is_small = images < 10_000
    assert yaml.safe_load(text)["GID"]["FEATURE_WEIGHT"] == (0.1 if is_small else 5e-4)
    assert ("can harm on small data" in " ".join(text.replace("#", "").split())) is is_small


@pytest.mark.parametrize("family", list(KINDS))
def test_the_loss_weights_of_small_sets_are_those_of_the_config_that_the_comment_names(
    family: str,
) -> None:
    places = Places(data="d", train="train", val="val", results="output/mine", configs="mine")
    written = yaml.safe_load(distill_text(KINDS[family], chosen(), places))["GID"]
    found = re.search(r"configs/\S+\.yaml", KINDS[family].small_source)
    assert found is not None
    cfg = load_config(str(ROOT / found[0]))
    weights = {key: value for key, value in cfg.GID.items() if key.endswith("_WEIGHT")}
    assert {key: written.get(key, 0.0) for key in weights} == weights
