"""A Faster R-CNN learns from a Faster R-CNN: its RPN as a dense head does, and its box head."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from detectron2.utils.events import EventStorage

from configs.loader import load_config
from configs.nodes import GidConfig
from dataset.scenes import CLASS_NAMES
from dataset.synthetic import SyntheticConfig, write_synthetic
from detectors import Setup, export_model
from stage1_dump.dump import run as dump
from stage2_distill import show
from stage2_distill.__main__ import main
from stage2_distill.methods import check_methods
from stage2_distill.methods.gid import box_head
from stage2_distill.methods.gid.box_head import box_head_response, check_box_head
from stage2_distill.methods.gid.losses import needed_signals
from stage2_distill.teacher import padded_size
from stage2_distill.trainer import DistillTrainer
from tests.stage2_distill.conftest import write_student
from tests.stage2_distill.rank_process import RANKS, Runs, run_rank
from tests.stage2_distill.runs import GID_LOSSES, build, losses_of, teacher_and_view, train
from tests.tiny import DETECTOR, FASTER_RCNN, random_detector, write_config

Configure = Callable[..., Path]
Capture = pytest.CaptureFixture[str]

OWN_LOSSES = {"loss_rpn_cls", "loss_rpn_loc", "loss_cls", "loss_box_reg"}
BOX_HEAD_LOSSES = {"loss_gid_box_cls", "loss_gid_box_reg"}
WITH_BOX_HEAD = {"BOX_HEAD_CLS_WEIGHT": 1.0, "BOX_HEAD_REG_WEIGHT": 2.0}
HEADS = {**FASTER_RCNN["ROI_HEADS"], "NUM_CLASSES": len(CLASS_NAMES)}
TEACHER = {**FASTER_RCNN, "ROI_HEADS": HEADS}
STUDENT = {**TEACHER, "FPN": {**FASTER_RCNN["FPN"], "OUT_CHANNELS": 12}}
CACHES: dict[str, dict[str, Any]] = {
    "exact": {"PRESET": "exact"},
    "balanced": {"PRESET": "balanced"},
    "no_p2": {"PRESET": "exact", "LEVELS": ["p3", "p4", "p5", "p6"]},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data/`, `teacher.yaml`, `teacher.pth`, and the caches, one view at a time."""
    folder = tmp_path_factory.mktemp("two_stages")
    write_synthetic(folder / "data", SyntheticConfig(train=6, val=2, size=90), workers=1)
    cfg = write_config(folder / "teacher.yaml", {**DETECTOR, "MODEL": TEACHER})
    export_model(random_detector(cfg, seed=1), folder / "teacher.pth")
    for name in CACHES:
        dump(load_config(str(write(folder, folder, name))))
    return folder


def write(folder: Path, target: Path, cache: str, **nodes: Any) -> Path:
    """Write a student's config; like `write_student`, of a Faster R-CNN."""
    nodes = {"GID": WITH_BOX_HEAD, "MODEL": STUDENT, "TEACHER": {"BATCH": 1}, **nodes}
    given = {**CACHES.get(cache, {}), "LOCATION": str(folder / cache), **nodes.pop("CACHE", {})}
    return write_student(folder, target, cache, **{"CACHE": given, **nodes})


@pytest.fixture
def configure(folder: Path, tmp_path: Path) -> Configure:
    return lambda cache="exact", **nodes: write(folder, tmp_path, cache, **nodes)


def test_a_cached_teacher_teaches_what_the_live_one_does_bit_by_bit(configure: Configure) -> None:
    cached, live = (
        losses_of(train(configure(TEACHER={"SOURCE": source, "BATCH": 1}), "SOLVER.MAX_ITER", 6))
        for source in ("cache", "live")
    )
    assert cached.keys() == OWN_LOSSES | GID_LOSSES | BOX_HEAD_LOSSES
    assert cached == live and all(len(values) == 6 for values in cached.values())
    assert all(any(values) for values in cached.values())


def test_records_of_several_sizes_keep_their_proposals(configure: Configure) -> None:
    cached, live = (
        build(configure(TEACHER={"SOURCE": source, "BATCH": 1})) for source in ("cache", "live")
    )
    for batch in cached.build_train_loader(cached.cfg):
        sizes = {padded_size(item["image"], 32) for item in batch}
        if len(sizes) > 1:
            break
    height, width = map(max, zip(*sizes, strict=True))
    grid = cached.setup.family.geometry(cached.cfg, height, width).level_sizes
    ours, theirs = (
        one.distiller._source.outputs(batch, grid, torch.device("cpu")).further
        for one in (cached, live)
    )
    assert len(ours) == 3 and ours.keys() == theirs.keys()
    for name, values in ours.items():
        assert torch.equal(values, theirs[name]) and values.any()


def test_without_its_weights_the_box_head_learns_from_objects_alone(configure: Configure) -> None:
    trainer = train(configure(GID={}), "SOLVER.MAX_ITER", 2)
    assert losses_of(trainer).keys() == OWN_LOSSES | GID_LOSSES
    reader = trainer._teacher.reader
    read = {name.partition(".")[0] for name in reader.read(0)}
    assert not read & {"proposals", "proposal_scores", "proposal_deltas"}


@pytest.mark.parametrize(
    "solver", [{"AMP": {"ENABLED": True, "DTYPE": "bfloat16"}}, {"ACCUMULATE": 2}]
)
def test_it_trains_in_mixed_precision_and_in_parts(
    configure: Configure, solver: dict[str, Any]
) -> None:
    trainer = train(configure(SOLVER={"IMS_PER_BATCH": 2, "MAX_ITER": 2, **solver}))
    losses = losses_of(trainer)
    assert losses.keys() == OWN_LOSSES | GID_LOSSES | BOX_HEAD_LOSSES
    assert np.isfinite(list(losses.values())).all()


def fidelity(path: Path, capsys: Capture) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    arguments = ["--json", "--views", "4", "--student", "initial", "--config-file", str(path)]
    code = main(["fidelity", *arguments])
    (student,) = json.loads(capsys.readouterr().out.splitlines()[-1])["students"]
    return code, student


@pytest.mark.parametrize("cache", list(CACHES))
def test_a_cache_is_true_to_the_live_teacher(
    configure: Configure, capsys: Capture, cache: str
) -> None:
    code, student = fidelity(configure(cache), capsys)
    assert code == 0, student
    assert student["errors"].keys() == GID_LOSSES | BOX_HEAD_LOSSES and student["instances"] > 0


def test_boxes_are_pooled_from_the_levels_of_the_box_head(configure: Configure) -> None:
    for cache, strides in (("exact", [4, 8, 16, 32]), ("no_p2", [8, 16, 32])):
        (method,) = build(configure(cache)).distiller.methods
        assert method._pooler._strides == strides


def test_anchors_of_a_level_that_a_cache_lacks_take_part_in_nothing(configure: Configure) -> None:
    trainer = build(configure("no_p2"))
    begun, losses, outputs = losses_beside(trainer)
    assert begun.instances.valid.any()
    p2 = outputs.pyramid["p2"]
    of_dense = sum(loss for name, loss in losses.items() if name in GID_LOSSES)
    (gradient,) = torch.autograd.grad(of_dense, p2, retain_graph=True)
    assert not gradient.any()
    # The student's box head reads its own p2 all the same.
    (gradient,) = torch.autograd.grad(losses["loss_gid_box_cls"], p2)
    assert gradient.any()


def losses_beside(trainer: DistillTrainer) -> tuple[Any, dict[str, torch.Tensor], Any]:
    """What GID begins with on the first batch, its losses, and the student's outputs."""
    batch = next(iter(trainer.build_train_loader(trainer.cfg)))
    distiller = trainer.distiller
    (method,) = distiller.methods
    outputs = trainer.setup.family.run(trainer.detector, batch)
    step = distiller.step(batch, distiller._source, outputs)
    begun = method.begin(step)
    chosen = method.assigned(step, begun, distiller.positive(step, outputs))
    return begun, method.weighted(step, method(step, chosen)), outputs


def test_an_image_without_objects_and_a_student_without_a_teacher_train(
    configure: Configure,
) -> None:
    trainer = build(configure(TEACHER={"SOURCE": "none"}))
    batch = next(iter(trainer.build_train_loader(trainer.cfg)))
    for item in batch:
        item["instances"] = item["instances"][:0]
    with EventStorage():
        losses = trainer.distiller(batch)
    assert losses.keys() == OWN_LOSSES
    assert losses["loss_box_reg"] == losses["loss_rpn_loc"] == 0 < losses["loss_cls"]


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max())
    return powers / powers.sum()


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_the_response_equals_a_slow_reference(beta: float) -> None:
    rng = np.random.default_rng(3)
    images, rows, classes = 3, 5, 4
    mine, theirs = rng.normal(size=(2, images, rows, classes + 1)) * 2
    deltas, wanted = rng.normal(size=(images, rows, classes, 4)), rng.normal(size=(images, rows, 4))
    used = rng.random((images, rows)) < 0.6
    used[1] = False
    foreign = rng.random((images, rows)) < 0.4
    divergence = distance = 0.0
    for i, p in zip(*used.nonzero(), strict=True):
        ours, target = softmax(mine[i, p]), softmax(theirs[i, p])
        divergence += sum(t * math.log(t / o) for o, t in zip(ours, target, strict=True))
        best = max(range(classes), key=lambda k: theirs[i, p, k])
        for gap in np.abs(deltas[i, p, best] - wanted[i, p]) * ~foreign[i, p]:
            distance += gap - beta / 2 if gap >= beta else gap * gap / (2 * beta)
    tensors = [torch.tensor(one, dtype=torch.float32) for one in (mine, deltas, theirs, wanted)]
    count = int(used.sum())
    found = box_head_response(
        *tensors,
        torch.tensor(used),
        beta=beta,
        count=torch.tensor(float(count)),
        foreign=torch.tensor(foreign),
    )
    assert [float(one) for one in found] == pytest.approx([divergence / count, distance / count])


def test_without_proposals_the_response_is_zero_and_has_a_gradient() -> None:
    logits = torch.zeros(1, 2, 4, requires_grad=True)
    deltas = torch.zeros(1, 2, 3, 4, requires_grad=True)
    found = box_head_response(
        logits, deltas, torch.ones(1, 2, 4), torch.ones(1, 2, 4),
        torch.zeros(1, 2, dtype=torch.bool), beta=0.0, count=torch.tensor(0.0),
    )  # fmt: skip
    assert [float(one.detach()) for one in found] == [0, 0]
    sum(found).backward()
    assert not logits.grad.any() and not deltas.grad.any()


@pytest.mark.parametrize(
    "given", [(1.0, 0.0), (0.0, 1.0), (0.0, 0.0)], ids=["classes", "boxes", "neither"]
)
def test_the_second_stage_is_needed_where_a_weight_is_not_zero(given: tuple[float, float]) -> None:
    config = GidConfig(box_head_cls_weight=given[0], box_head_reg_weight=given[1])
    needed = needed_signals(config)
    assert needed[:3] == ("features", "scores", "deltas")
    assert len(needed) == (6 if any(given) else 3)


def test_global_counts_divide_by_the_proposals_of_all_ranks(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(box_head, "mean_over_ranks", lambda own: own * 2)
    found = []
    for counts in ("rank", "global"):
        _, losses, _ = losses_beside(build(configure(DISTILL={"COUNTS": counts})))
        found.append({name: float(losses[name].detach()) for name in BOX_HEAD_LOSSES})
    assert found[0] == pytest.approx({name: 2 * loss for name, loss in found[1].items()})


def test_two_ranks_distil_as_one(folder: Path, tmp_path: Path) -> None:
    """Two real processes; what they sample for the detector's own losses is a draw of each."""
    nodes: dict[str, Any] = {
        # Views of one size: padding to a larger one would change the student's outputs.
        "VIEWS": {"NUM": 2, "SCALES": [64], "MAX_SIZE": 64},
        "CACHE": {"LOCATION": str(tmp_path / "cache")},
        "DISTILL": {"COUNTS": "global"},
        "GID": {**WITH_BOX_HEAD, "RELATION_SCOPE": "image"},
        "MODEL": {**STUDENT, "RESNETS": {**STUDENT["RESNETS"], "NORM": "LN"}},
        "SOLVER": {"BASE_LR": 0.001, "IMS_PER_BATCH": 4, "MAX_ITER": 2},
    }
    (tmp_path / "alone").mkdir()
    (tmp_path / "pair").mkdir()
    alone, pair = (write(folder, tmp_path / name, "exact", **nodes) for name in ("alone", "pair"))
    dump(load_config(str(alone)))
    runs: Runs = {"pair": (str(pair), [])}
    mp.spawn(run_rank, (str(tmp_path / "meeting"), runs, str(tmp_path)), nprocs=RANKS)
    first, second = (torch.load(tmp_path / f"pair.{rank}.pt") for rank in range(RANKS))
    losses = losses_of(train(alone))
    assert first["mean"].keys() == losses.keys() == OWN_LOSSES | GID_LOSSES | BOX_HEAD_LOSSES
    for name in GID_LOSSES | BOX_HEAD_LOSSES:
        assert losses[name][0] > 0
        assert first["mean"][name][0] == pytest.approx(losses[name][0], rel=1e-5), name
        assert first["own"][0][name] != second["own"][0][name]
    assert all(torch.equal(first["weights"][k], second["weights"][k]) for k in first["weights"])


@pytest.mark.parametrize("key", ["BOX_HEAD_CLS_WEIGHT", "BOX_HEAD_REG_WEIGHT"])
def test_a_detector_without_a_box_head_is_refused_with_these_weights(
    tmp_path: Path, key: str
) -> None:
    write_config(tmp_path / "teacher.yaml", DETECTOR)
    nodes = {"TEACHER": {"CONFIG": "teacher.yaml"}, "GID": {key: 0.5}}
    cfg = write_config(tmp_path / "student.yaml", {**DETECTOR, **nodes})
    with pytest.raises(ValueError) as error:
        check_box_head(Setup(cfg), Setup(cfg).settings["GID"])
    assert str(error.value).endswith(
        f"GID.{key} is 0.5, but a RetinaNet has no box head; set it to 0.0"
    )
    assert "student.yaml:" in str(error.value) and "\n" not in str(error.value)


def test_a_teacher_whose_background_was_not_trained_is_refused_where_it_is_read(
    configure: Configure, tmp_path: Path
) -> None:
    head = {**TEACHER["ROI_BOX_HEAD"], "USE_SIGMOID_CE": True}
    write_config(
        tmp_path / "sigmoid.yaml", {**DETECTOR, "MODEL": {**TEACHER, "ROI_BOX_HEAD": head}}
    )
    of_sigmoids = {"CONFIG": str(tmp_path / "sigmoid.yaml"), "BATCH": 1}
    setup = Setup(load_config(str(configure(TEACHER=of_sigmoids))))
    wanted = (
        r"USE_SIGMOID_CE: student False, teacher True; the method gid needs the proposal_scores"
    )
    with pytest.raises(ValueError, match=wanted):
        check_methods(setup)
    without = dict.fromkeys(WITH_BOX_HEAD, 0.0)
    check_methods(Setup(load_config(str(configure(TEACHER=of_sigmoids, GID=without)))))


def test_the_head_that_is_inherited_is_that_of_both_stages(configure: Configure) -> None:
    trainer = build(configure(MODEL=TEACHER, TEACHER={"INHERIT": "head", "BATCH": 1}))
    trainer.resume_or_load(resume=False)
    weights = torch.load(trainer.setup.teacher_cfg.MODEL.WEIGHTS, weights_only=True)["model"]
    ours = trainer.detector.state_dict()
    for name, tensor in weights.items():
        is_head = name.startswith(("proposal_generator.rpn_head", "roi_heads"))
        assert torch.equal(ours[name], tensor) or not is_head


def test_pictures_have_the_teacher_s_own_boxes(configure: Configure) -> None:
    found = []
    for source in ("cache", "live"):
        path = configure(TEACHER={"SOURCE": source, "BATCH": 1})
        teacher, given, item = teacher_and_view(path, 1)
        found.append(show._detections(teacher, given, item))
    cached, live = found
    assert cached.image_size == live.image_size and len(cached) == len(live) == 5
    for name, value in live.get_fields().items():
        other = cached.get(name)
        one, two = (getattr(x, "tensor", x) for x in (value, other))
        assert torch.equal(one, two)


def test_pictures_are_drawn(configure: Configure, tmp_path: Path, capsys: Capture) -> None:
    output = Path(train(configure(), "SOLVER.MAX_ITER", 1).cfg.OUTPUT_DIR)
    for source in ("cache", "live"):
        pictures = tmp_path / source
        path = str(configure(TEACHER={"SOURCE": source, "BATCH": 1}))
        command = ["show", "--count", "1", "--output", str(pictures), "--config-file", path]
        assert main([*command, "MODEL.WEIGHTS", str(output / "student_final.pth")]) == 0
        assert len(list(pictures.iterdir())) == 1
