"""FCOS from end to end: teacher, caches of every preset, students, and all commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import LazyConfig, instantiate
from detectron2.data import (
    DatasetMapper,
    build_detection_test_loader,
    get_detection_dataset_dicts,
)
from detectron2.data.transforms import ResizeShortestEdge
from detectron2.evaluation import COCOEvaluator, inference_on_dataset
from detectron2.modeling.meta_arch import fcos

import detectors.__main__
import stage1_dump.__main__
import stage2_distill.__main__
from configs.loader import load_config
from dataset.scenes import CLASS_NAMES
from detectors import export_model
from detectors.evaluate import evaluate
from detectors.families.fcos import FcosFamily
from stage1_dump.dump import run as dump
from stage2_distill.fidelity import INITIAL
from storage import CacheReader
from tests.stage2_distill.conftest import Configure, write_student
from tests.stage2_distill.runs import GID_LOSSES, build, losses_of, train
from tests.stage2_distill.test_parity import next_batch, step
from tests.tiny import FCOS_DETECTOR, random_detector, write_config

OWN_LOSSES = {"loss_fcos_cls", "loss_fcos_loc", "loss_fcos_ctr"}
PRESETS = ("exact", "balanced", "compact")
HEAD = {**FCOS_DETECTOR["MODEL"]["FCOS"], "NUM_CLASSES": len(CLASS_NAMES)}
TEACHER = {**FCOS_DETECTOR, "MODEL": {**FCOS_DETECTOR["MODEL"], "FCOS": HEAD}}
Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def home(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An FCOS teacher, run on one view at a time, and its complete caches."""
    home = tmp_path_factory.mktemp("fcos")
    (home / "data").symlink_to(folder / "data")
    cfg = write_config(home / "teacher.yaml", TEACHER)
    export_model(random_detector(cfg, seed=1), home / "teacher.pth")
    for preset in PRESETS:
        dump(load_config(str(write(home, home, preset))))
    return home


def write(home: Path, target: Path, preset: str = "exact", **nodes: dict[str, Any]) -> Path:
    """Write `student.yaml` into `target`; the student's pyramid has other channels."""
    model = {**TEACHER["MODEL"], "FPN": {**TEACHER["MODEL"]["FPN"], "OUT_CHANNELS": 12}}
    nodes = {"CACHE": {}, "TEACHER": {}, **nodes}
    nodes["CACHE"] = {"PRESET": preset, **nodes["CACHE"]}
    nodes["TEACHER"] = {"BATCH": 1, **nodes["TEACHER"]}
    path = write_student(home, target, preset, **nodes)
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump({**content, "MODEL": {**model, **nodes.get("MODEL", {})}}))
    return path


@pytest.mark.parametrize("mixed", [False, True], ids=["one size", "mixed sizes"])
@pytest.mark.parametrize("score", ["per_class", "centered"])
def test_losses_and_gradients_of_a_batch_agree(
    home: Path, tmp_path: Path, mixed: bool, score: str
) -> None:
    cached, live = (
        build(write(home, tmp_path, TEACHER={"SOURCE": source}, GID={"SCORE": score}))
        for source in ("cache", "live")
    )
    batch = next_batch(cached, mixed=mixed)
    (ours, our_gradients), (theirs, their_gradients) = (step(t, batch) for t in (cached, live))
    assert ours == theirs and ours.keys() == OWN_LOSSES | GID_LOSSES
    assert all(value > 0 for value in ours.values())
    assert our_gradients.keys() == their_gradients.keys()
    assert len(our_gradients) == sum(p.requires_grad for p in live._trainer.model.parameters())
    assert all(torch.equal(our_gradients[name], other) for name, other in their_gradients.items())


@pytest.mark.parametrize("score", ["max", "centered"])
def test_steps_from_an_exact_cache_are_those_of_the_live_teacher(
    home: Path, tmp_path: Path, score: str
) -> None:
    nodes = {"GID": {"SCORE": score}, "SOLVER": {"MAX_ITER": 5}}
    cached, live = (
        losses_of(train(write(home, tmp_path, TEACHER={"SOURCE": source}, **nodes)))
        for source in ("cache", "live")
    )
    assert cached == live and cached.keys() == OWN_LOSSES | GID_LOSSES


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_is_within_its_limits(
    home: Path, tmp_path: Path, preset: str, capsys: Capture
) -> None:
    path = write(home, tmp_path, preset, GID={"SCORE": "centered"})
    command = ["fidelity", "--json", "--views", "12", "--student", INITIAL]
    code = stage2_distill.__main__.main([*command, "--config-file", str(path)])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert code == 0 and found["reached"] and found["students"][0]["instances"] > 0, found


def test_the_exported_student_is_detectron2_s_own_to_evaluate(home: Path, tmp_path: Path) -> None:
    trainer = train(write(home, tmp_path))
    output = Path(trainer.cfg.OUTPUT_DIR)
    stock = instantiate(LazyConfig.load(str(output / "student_final.py")).model).eval()
    assert type(stock) is fcos.FCOS
    assert not DetectionCheckpointer(stock).load(str(output / "student_final.pth"))
    evaluator = COCOEvaluator("folder_val", output_dir=str(tmp_path / "stock"))
    loader = build_detection_test_loader(
        get_detection_dataset_dicts("folder_val"),
        mapper=DatasetMapper(
            is_train=False,
            augmentations=[ResizeShortestEdge(64, 96)],
            image_format=trainer.cfg.INPUT.FORMAT,
        ),
    )
    metrics = inference_on_dataset(stock, loader, evaluator)["bbox"]
    ours = evaluate(trainer.cfg, trainer.detector)["folder_val"]
    assert ours["AP"] == pytest.approx(max(metrics["AP"], 0.0))
    found, wanted = (
        json.loads((folder / "coco_instances_results.json").read_text())
        for folder in (output / "inference" / "folder_val", tmp_path / "stock")
    )
    assert found == wanted != []


@pytest.mark.parametrize("key", ["META_ARCHITECTURE", "BACKBONE.NAME"])
def test_what_detectron2_alone_does_not_have_is_no_lazy_config(home: Path, key: str) -> None:
    cfg = load_config(str(home / "teacher.yaml"))
    assert FcosFamily().lazy_config(cfg)
    cfg.merge_from_list([f"MODEL.{key}", "mine"])
    assert not FcosFamily().lazy_config(cfg)


def test_centered_needs_a_detector_and_a_cache_with_centerness(
    home: Path, tmp_path: Path, configure: Configure
) -> None:
    centered = {"GID": {"SCORE": "centered"}}
    for source in ("cache", "live"):
        with pytest.raises(
            ValueError, match=r"yaml:\d+: GID\.SCORE is 'centered', but a RetinaNet"
        ):
            build(configure("exact", TEACHER={"SOURCE": source}, **centered))
    few = {"LOCATION": str(tmp_path / "few"), "SIGNALS": ["features", "scores", "deltas"]}
    dump(load_config(str(write(home, tmp_path, CACHE=few))))
    with pytest.raises(ValueError, match=r"lacks the signal centerness.* set GID.SCORE per_class"):
        build(write(home, tmp_path, CACHE=few, **centered))
    assert losses_of(train(write(home, tmp_path, CACHE=few, SOLVER={"MAX_ITER": 1})))


def test_a_teacher_of_another_family_is_refused(home: Path, tmp_path: Path, folder: Path) -> None:
    path = write(home, tmp_path, TEACHER={"CONFIG": str(folder / "teacher.yaml")})
    with pytest.raises(ValueError, match="anchors per position: student 1, teacher 3"):
        build(path)


def test_all_commands_work(home: Path, tmp_path: Path, capsys: Capture) -> None:
    path = write(home, tmp_path, CACHE={"LOCATION": str(tmp_path / "cache")})
    config = ["--config-file", str(path)]
    weights = ["MODEL.WEIGHTS", str(tmp_path / "output" / "student_final.pth")]
    truth = str(home / "data/annotations/instances_train.json")
    steps = [
        (stage1_dump.__main__.main, ["plan", *config]),
        (stage1_dump.__main__.main, ["run", *config]),
        (stage1_dump.__main__.main, ["check", *config]),
        (
            stage1_dump.__main__.main,
            ["evaluate", str(tmp_path / "cache"), "--annotations", truth],
        ),
        (stage2_distill.__main__.main, ["train", *config, "SOLVER.MAX_ITER", "2"]),
        (
            stage2_distill.__main__.main,
            ["show", "--count", "1", "--output", str(tmp_path / "pictures"), *config, *weights],
        ),
        (detectors.__main__.main, ["eval", *config, *weights]),
        (detectors.__main__.main, ["train", *config, "OUTPUT_DIR", str(tmp_path / "plain")]),
    ]
    for command, arguments in steps:
        assert command(arguments) == 0, (arguments, capsys.readouterr().err)
    assert len(list((tmp_path / "pictures").iterdir())) == 1
    assert {"centerness"} <= CacheReader(str(tmp_path / "cache")).manifest.signals.keys()
    assert (tmp_path / "plain" / "model_final.pth").exists()


@pytest.mark.parametrize("preset", ["exact", "compact"])
def test_mixed_precision_trains_close_to_full_precision(
    home: Path, tmp_path: Path, preset: str
) -> None:
    path = write(home, tmp_path, preset, GID={"SCORE": "centered"}, DATASETS={"TEST": []})
    mixed = ("SOLVER.AMP.ENABLED", True, "SOLVER.AMP.DTYPE", "bfloat16")
    full, half = (losses_of(train(path, "SOLVER.MAX_ITER", 1, *keys)) for keys in ((), mixed))
    for name, values in full.items():
        assert half[name] != values and half[name] == pytest.approx(values, rel=0.25), name
