"""A student of some of the teacher's classes learns as from a teacher of these classes alone."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from configs.loader import load_config
from dataset.scenes import CLASS_NAMES
from dataset.synthetic import SyntheticConfig, write_synthetic
from detectors import Setup, export_model
from detectors.families.retinanet import RetinaNetFamily
from stage1_dump.dump import run as dump
from stage1_dump.evaluate import evaluate_cache
from stage2_distill.fidelity import measure
from stage2_distill.show import draw_views
from stage2_distill.teacher import TeacherSource
from stage2_distill.teacher_batch import TeacherBatch
from stage2_distill.trainer import DistillTrainer
from tests.detectors.families import own_models  # noqa: F401 (registers its models)
from tests.stage2_distill.conftest import write_student
from tests.stage2_distill.runs import build, losses_of, train
from tests.tiny import DETECTOR, FASTER_RCNN, FCOS_DETECTOR, random_detector, write_config

# The student's, neither as many as the teacher's nor in its order.
COLUMNS = (4, 0, 2)
NAMES = tuple(CLASS_NAMES[column] for column in COLUMNS)
ALL = len(CLASS_NAMES)
KEPT = {"CLASSES": list(CLASS_NAMES)}
# MODEL, the node of its number of classes, and layers that tell these apart to values of each.
FAMILIES: dict[str, tuple[dict[str, Any], str, dict[str, int]]] = {
    "RetinaNet": (DETECTOR["MODEL"], "RETINANET", {"head.cls_score": 1}),
    "FCOS": (FCOS_DETECTOR["MODEL"], "FCOS", {"head.cls_score": 1}),
    "Faster R-CNN": (
        FASTER_RCNN,
        "ROI_HEADS",
        {"roi_heads.box_predictor.cls_score": 1, "roi_heads.box_predictor.bbox_pred": 4},
    ),
}


@dataclass(frozen=True)
class Home:
    """A teacher of all classes with its cache, one cut by hand, and data of three categories."""

    path: Path
    model: dict[str, Any]
    node: str
    layers: dict[str, int]

    def of_classes(self, number: int, **nodes: Any) -> dict[str, Any]:
        return {**self.model, self.node: {**self.model[self.node], "NUM_CLASSES": number}, **nodes}

    def student(self, target: Path, **nodes: Any) -> Path:
        """Write a student's config; of a pyramid as wide as the teacher's."""
        given = {
            "TEACHER": {"BATCH": 1, **KEPT, **nodes.pop("TEACHER", {})},
            "CACHE": {"LOCATION": str(self.path / "cache")},
        }
        path = write_student(self.path, target, "exact", **{**given, **nodes})
        content = yaml.safe_load(path.read_text())
        path.write_text(yaml.safe_dump({**content, "MODEL": self.of_classes(len(NAMES))}))
        return path


@pytest.fixture(scope="module", params=list(FAMILIES))
def home(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home(tmp_path_factory.mktemp("classes"), *FAMILIES[request.param])
    write_synthetic(home.path / "data", SyntheticConfig(train=6, val=2, size=90), workers=1)
    for path in (home.path / "data" / "annotations").glob("*.json"):
        path.write_text(json.dumps(of_three_categories(json.loads(path.read_text()))))
    states: list[dict[str, Tensor]] = []
    for name, number in (("teacher", ALL), ("cut", len(NAMES))):
        content = {
            **DETECTOR,
            "MODEL": home.of_classes(number),
            "TEST": {"DETECTIONS_PER_IMAGE": 40},
        }
        model = random_detector(write_config(home.path / f"{name}.yaml", content), seed=1)
        states.append(model.state_dict())
        if name == "cut":
            model.load_state_dict(cut(states[0], home.layers))
        export_model(model, home.path / f"{name}.pth")
    dump(load_config(str(home.student(home.path))))
    return home


def of_three_categories(document: dict[str, Any]) -> dict[str, Any]:
    """The same scenes with the student's categories alone, numbered in their order."""
    ids = {one["name"]: one["id"] for one in document["categories"]}
    numbers = {ids[name]: number for number, name in enumerate(NAMES, 1)}
    kept = [one for one in document["annotations"] if one["category_id"] in numbers]
    return {
        **document,
        "annotations": [{**one, "category_id": numbers[one["category_id"]]} for one in kept],
        "categories": [{"id": number, "name": name} for number, name in enumerate(NAMES, 1)],
    }


def cut(state: dict[str, Tensor], layers: dict[str, int]) -> dict[str, Tensor]:
    """Weights of a detector of the student's classes, row by row."""
    found = dict(state)
    for layer, values in layers.items():
        for name in (f"{layer}.weight", f"{layer}.bias"):
            tensor, rows = state[name], []
            background = [ALL] if len(tensor) == ALL + 1 else []
            for anchor in range(max(1, len(tensor) // (ALL * values))):
                for column in (*COLUMNS, *background):
                    first = (anchor * ALL + column) * values
                    rows += range(first, first + values)
            found[name] = tensor[rows]
    return found


BY_HAND = {"CLASSES": [], "SOURCE": "live"}


def by_hand(home: Home) -> dict[str, Any]:
    """TEACHER: the one that was cut."""
    files = {"CONFIG": str(home.path / "cut.yaml"), "WEIGHTS": str(home.path / "cut.pth")}
    return {**BY_HAND, **files}


def distilled(home: Home, target: Path, teacher: dict[str, Any]) -> dict[str, list[float]]:
    """Losses of GID and of the methods on scores, over some steps."""
    weights = {"BOX_HEAD_CLS_WEIGHT": 1.0} if home.node == "ROI_HEADS" else {}
    path = home.student(
        target, TEACHER=teacher, GID=weights, DISTILL={"METHODS": ["gid", "frs", "boxes"]}
    )
    return losses_of(train(path, "SOLVER.MAX_ITER", 2))


def test_it_learns_as_from_a_teacher_whose_head_was_cut_by_hand(home: Home, tmp_path: Path) -> None:
    cached, live = (distilled(home, tmp_path, {"SOURCE": source}) for source in ("cache", "live"))
    assert cached == live
    wanted = distilled(home, tmp_path, by_hand(home))
    assert wanted.keys() == cached.keys() and any("gid_response_cls" in name for name in wanted)
    for name, values in wanted.items():
        assert cached[name] == pytest.approx(values, rel=1e-4), name


def batch_of(trainer: DistillTrainer) -> TeacherBatch:
    """What the methods see of the teacher in the first batch, with all signals."""
    batch = next(iter(trainer.build_train_loader(trainer.cfg)))
    outputs = trainer.setup.family.run(trainer.detector, batch)
    source: TeacherSource = trainer.distiller._source
    return trainer.distiller.step(batch, source, outputs).teacher


def test_methods_see_scores_and_detections_of_its_classes_alone(home: Home, tmp_path: Path) -> None:
    methods = {"METHODS": ["gid", "pseudo"]}
    weights = {"BOX_HEAD_CLS_WEIGHT": 1.0} if home.node == "ROI_HEADS" else {}
    ours, wanted = (
        batch_of(build(home.student(tmp_path, TEACHER=teacher, DISTILL=methods, GID=weights)))
        for teacher in ({}, by_hand(home))
    )
    torch.testing.assert_close(ours.probabilities, wanted.probabilities)
    classes = ours.detections[..., 5]
    used = ours.detections[..., 4] >= 0
    assert used.any() and not used.all() and classes[used].max() < len(NAMES)
    assert (classes[~used] == -1).all()
    if home.node == "ROI_HEADS":
        told = ~ours.foreign
        assert told.any() and not told.all()
        name = "proposal_deltas"
        torch.testing.assert_close(ours.further[name][told], wanted.further[name][told])
        name = "proposal_scores"
        torch.testing.assert_close(ours.further[name], wanted.further[name])


def test_it_starts_with_the_rows_of_its_classes(home: Home, tmp_path: Path) -> None:
    trainer = build(home.student(tmp_path, TEACHER={"INHERIT": "head", "SOURCE": "none"}))
    trainer.resume_or_load(resume=False)
    wanted = torch.load(home.path / "cut.pth", weights_only=True)["model"]
    state = trainer.detector.state_dict()
    for layer in home.layers:
        assert torch.equal(state[f"{layer}.weight"], wanted[f"{layer}.weight"])
        assert torch.equal(state[f"{layer}.bias"], wanted[f"{layer}.bias"])


of_retinanet = pytest.mark.parametrize("home", ["RetinaNet"], indirect=True)


@of_retinanet
def test_a_head_of_the_user_s_own_nesting_starts_so_too_or_is_refused(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = home.of_classes(ALL, META_ARCHITECTURE="HeldRetinaNet")
    teacher = random_detector(
        write_config(tmp_path / "held.yaml", {**DETECTOR, "MODEL": model}), seed=1
    )
    export_model(teacher, tmp_path / "held.pth")
    files = {"CONFIG": str(tmp_path / "held.yaml"), "WEIGHTS": str(tmp_path / "held.pth")}
    path = home.student(tmp_path, TEACHER={**files, "INHERIT": "head", "SOURCE": "none"})
    trainer = build(path, "MODEL.META_ARCHITECTURE", "HeldRetinaNet")
    trainer.resume_or_load(resume=False)
    wanted, state = teacher.state_dict(), trainer.detector.state_dict()
    for name, tensor in cut(wanted, {"head.held.cls_score": 1}).items():
        assert not name.startswith("head.") or torch.equal(state[name], tensor), name
    monkeypatch.setattr(RetinaNetFamily, "class_layers", {"scores": 1})
    with pytest.raises(ValueError, match=r"head: .* no layer named scores, .*INHERIT none$"):
        trainer.resume_or_load(resume=False)


@of_retinanet
def test_without_names_another_number_of_classes_is_refused(home: Home, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"student 3, teacher 5; .*; if .* set TEACHER\.CLASSES$"):
        build(home.student(tmp_path, TEACHER={"CLASSES": []}))


@of_retinanet
def test_names_of_other_classes_are_refused_before_a_model_is_built(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DistillTrainer, "build_model", None)
    names = [NAMES[0], "ant", "bee", "cow", "elk"]
    with pytest.raises(ValueError, match=rf"CLASSES has no '{NAMES[1]}', .* folder_train \(DATA"):
        build(home.student(tmp_path, TEACHER={"CLASSES": names}))
    with pytest.raises(ValueError, match=r"CLASSES has no .* folder_train \(DATASETS.TRAIN\) has"):
        dump(load_config(str(home.student(tmp_path, TEACHER={"CLASSES": names}))))


@of_retinanet
def test_the_log_names_the_classes_dropped(
    home: Home, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        build(home.student(tmp_path))
    dropped = ", ".join(name for name in CLASS_NAMES if name not in NAMES)
    wanted = f"TEACHER.CLASSES: the student has 3 of the teacher's 5 classes; dropped: {dropped}"
    assert caplog.messages.count(wanted) == 1


@of_retinanet
def test_pictures_fidelity_and_ap_are_of_the_student_s_classes(home: Home, tmp_path: Path) -> None:
    trainer = train(home.student(tmp_path), "SOLVER.MAX_ITER", 1)
    setup = Setup(load_config(str(home.student(tmp_path)), ["MODEL.WEIGHTS", ""]))
    assert measure(setup, ["initial"], 2).reached
    for source in ("cache", "live"):
        path = home.student(tmp_path, TEACHER={"SOURCE": source})
        weights = str(Path(trainer.cfg.OUTPUT_DIR) / "student_final.pth")
        setup = Setup(load_config(str(path), ["MODEL.WEIGHTS", weights]))
        (picture,) = draw_views(setup, count=1, folder=tmp_path / source)
        assert picture.is_file()
    annotations = str(home.path / "data/annotations/instances_train.json")
    found = evaluate_cache(str(home.path / "cache"), annotations, classes=CLASS_NAMES)
    assert {f"AP-{name}" for name in NAMES} <= found.views[0].keys()
