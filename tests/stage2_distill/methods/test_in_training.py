"""All methods in real training steps, of every family: from a cache as under the live teacher."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any, ClassVar
from unittest.mock import patch

import numpy as np
import pytest
import torch
from detectron2.utils.events import EventStorage

from configs.loader import load_config
from configs.nodes import NODES, register_node
from dataset.scenes import CLASS_NAMES
from dataset.synthetic import SyntheticConfig, write_synthetic
from detectors import Setup, export_model
from detectors.command import register_data
from stage1_dump.dump import run as dump
from stage2_distill import methods
from stage2_distill.__main__ import main
from stage2_distill.methods import DETECTIONS, Method, chosen_methods, needs_of, register_method
from stage2_distill.methods.answers import checked_metrics
from stage2_distill.teacher import open_teacher
from tests.stage2_distill import test_faster_rcnn, test_fcos
from tests.stage2_distill.conftest import write_student
from tests.stage2_distill.runs import GID_LOSSES, build, losses_of, train
from tests.stage2_distill.test_parity import next_batch, step
from tests.tiny import DETECTOR, random_detector, write_config

ALL = tuple(methods._METHODS)
FEATURES = ("pkd", "cwd", "mgd", "fgd", "mimic")
LOSSES = GID_LOSSES | {
    "loss_pkd", "loss_frs_feature", "loss_frs_cls", "loss_cwd", "loss_mgd", "loss_mimic",
    "loss_fgd_foreground", "loss_fgd_background", "loss_fgd_attention", "loss_fgd_relation",
    "loss_boxes",
}  # fmt: skip
# Random weights: small steps, and softmaxes at a temperature that fits features of such a size, as
# the methods' own does trained ones; at that they would be those of single positions.
NODES_OF_ALL: dict[str, Any] = {
    "DISTILL": {"METHODS": list(ALL)},
    "FRS": {"RAMP_ITERS": 2},
    "CWD": {"TEMPERATURE": 300.0},
    "FGD": {"TEMPERATURE": 20.0},
    "SOLVER": {"BASE_LR": 1e-5},
}
Write = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
RETINANET: dict[str, Any] = {
    **DETECTOR,
    "MODEL": {
        **DETECTOR["MODEL"],
        "RETINANET": {**DETECTOR["MODEL"]["RETINANET"], "NUM_CLASSES": len(CLASS_NAMES)},
    },
}
TEACHERS = {
    "RetinaNet": RETINANET,
    "FCOS": test_fcos.TEACHER,
    "FasterRCNN": {**DETECTOR, "MODEL": test_faster_rcnn.TEACHER},
}


def write_retinanet(home: Path, target: Path, preset: str, **nodes: Any) -> Path:
    given = {"PRESET": preset, "LOCATION": str(home / preset), **nodes.pop("CACHE", {})}
    teacher = {"BATCH": 1, **nodes.pop("TEACHER", {})}
    return write_student(home, target, preset, CACHE=given, TEACHER=teacher, **nodes)


WRITERS: dict[str, Write] = {
    "RetinaNet": write_retinanet,
    "FCOS": test_fcos.write,
    "FasterRCNN": test_faster_rcnn.write,
}


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """See `write_homes`."""
    data = tmp_path_factory.mktemp("data")
    write_synthetic(data, SyntheticConfig(train=6, val=2, size=90), workers=1)
    return write_homes(data, tmp_path_factory)


def write_homes(
    data: Path, tmp_path_factory: pytest.TempPathFactory, **nodes: Any
) -> dict[str, Path]:
    """Of each family `data/`, `teacher.yaml`, `teacher.pth` and the cache `exact`."""
    found = {}
    for name, teacher in TEACHERS.items():
        home = found[name] = tmp_path_factory.mktemp(name)
        (home / "data").symlink_to(data)
        cfg = write_config(home / "teacher.yaml", teacher)
        export_model(random_detector(cfg, seed=1), home / "teacher.pth")
        dump(load_config(str(WRITERS[name](home, home, "exact", **nodes))))
    return found


@pytest.fixture(params=list(TEACHERS))
def family(request: pytest.FixtureRequest) -> str:
    """Of teacher and student."""
    return str(request.param)


@pytest.fixture
def write(family: str, homes: dict[str, Path], tmp_path: Path) -> Write:
    """Write a student's config of one family; keyword arguments change its nodes."""
    home, make = homes[family], WRITERS[family]

    def made(preset: str = "exact", **nodes: Any) -> Path:
        return make(home, tmp_path, preset, **{**NODES_OF_ALL, **nodes})

    return made


def test_fifty_steps_from_an_exact_cache_are_those_of_the_live_teacher(write: Write) -> None:
    cached, live = (
        losses_of(train(write(TEACHER={"SOURCE": source, "BATCH": 1}), "SOLVER.MAX_ITER", 50))
        for source in ("cache", "live")
    )
    assert cached.keys() >= LOSSES and all(len(values) == 50 for values in cached.values())
    assert cached == live
    for name in LOSSES:
        assert any(cached[name]), name


@pytest.mark.parametrize("mixed", [False, True], ids=["one size", "mixed sizes"])
def test_every_trained_weight_has_a_gradient(write: Write, mixed: bool) -> None:
    trainer = build(write())
    _, gradients = step(trainer, next_batch(trainer, mixed=mixed))
    trained = {name for name, p in trainer._trainer.model.named_parameters() if p.requires_grad}
    assert gradients.keys() == trained
    assert any(name.startswith("_methods") for name in trained)


def test_an_image_without_objects_trains(write: Write) -> None:
    chosen = [name for name in ALL if name != "pseudo"]  # which could add some
    trainer = build(write(DISTILL={"METHODS": chosen}))
    batch = next(iter(trainer.build_train_loader(trainer.cfg)))
    for item in batch:
        item["instances"] = item["instances"][:0]
    losses, _ = step(trainer, batch)
    assert all(torch.tensor(value).isfinite() for value in losses.values())
    assert losses["loss_fgd_foreground"] == 0


@pytest.mark.parametrize("preset", ["exact", "balanced", "compact"])
def test_a_cache_is_true_to_the_live_teacher(
    family: str, write: Write, preset: str, tmp_path: Path, capsys: Capture
) -> None:
    chosen = [name for name, one in methods._METHODS.items() if preset not in one.too_coarse]
    path = write(
        preset,
        CACHE={"PRESET": preset, "LOCATION": str(tmp_path / "cache")},
        DISTILL={"METHODS": chosen},
    )
    dump(load_config(str(path)))
    command = ["fidelity", "--json", "--views", "12", "--student", "initial"]
    code = main([*command, "--config-file", str(path)])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    (student,) = found["students"]
    assert {name.split("_")[1] for name in student["errors"]} == {*chosen} - {"pseudo"}
    assert student["instances"] > 0 and student["cosines"].keys() == {*chosen} - {"pseudo"}
    if preset != "compact":
        assert code == 0 and found["reached"], student
    limits, cosines = found["limits"], student["cosines"]
    # Nothing is measured of a loss that is zero.
    assert all((cosine == 1.0) == (preset == "exact") for cosine in cosines.values())
    if family == "FCOS":
        del cosines["boxes"]  # random ones have no area, and a gradient that is their rounding
    assert student["error"] <= limits["error"] and student["matched"] >= limits["matched"]
    # Of random features; `benchmarks.fidelity` holds trained ones against the limit.
    assert min(cosines.values()) >= limits["cosine"] - 0.01, cosines


def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(write: Write, tmp_path: Path) -> None:
    steps = ("SOLVER.MAX_ITER", 4, "SOLVER.CHECKPOINT_PERIOD", 2)
    whole = train(write(), *steps)
    (tmp_path / "output" / "last_checkpoint").write_text("model_0000001.pth")
    resumed = train(write(), *steps, resume=True)
    for name, values in losses_of(resumed).items():
        assert values == losses_of(whole)[name][2:], name
    states = [one.distiller.trained_layers.state_dict() for one in (whole, resumed)]
    assert states[0].keys() == states[1].keys() == set(ALL)
    for name, layers in states[0].items():
        assert all(torch.equal(layers[key], states[1][name][key]) for key in layers)


def test_what_several_methods_read_is_decoded_once_and_nothing_else(write: Write) -> None:
    for chosen, signals in (
        (["pkd", "cwd"], {"features"}),
        (["boxes"], {"scores", "deltas"}),
        (["pseudo"], set()),
    ):
        trainer = build(write(DISTILL={"METHODS": chosen}))
        batch = next(iter(trainer.build_train_loader(trainer.cfg)))
        for item in batch:
            assert {name.partition(".")[0] for name in item["codes"]} == signals
            assert (DETECTIONS in item) == (chosen == ["pseudo"])
        losses, _ = step(trainer, batch)
        of_methods = {name for name in losses if name.startswith("loss_") and name in LOSSES}
        assert of_methods == {f"loss_{name}" for name in chosen if name != "pseudo"}


def test_pseudo_objects_are_what_the_detector_learns_from(write: Write) -> None:
    nodes = {"DISTILL": {"METHODS": ["pseudo"]}, "PSEUDO": {"MIN_SCORE": 0.0}}
    trainer = build(write(**nodes))
    batch = next(iter(trainer.build_train_loader(trainer.cfg)))
    for item in batch:
        item["instances"] = item["instances"][:0]
    with EventStorage() as storage:
        trainer.distiller(batch)
        assert storage.latest()["pseudo/num_added"][0] > 0


def test_annotated_objects_can_take_the_place_of_gis(write: Write) -> None:
    trainer = build(write(DISTILL={"METHODS": ["gid"]}, GID={"BOXES": "ground_truth"}))
    (method,) = trainer.distiller.methods
    batch = next(iter(trainer.build_train_loader(trainer.cfg)))
    for without in (False, True):
        if without:
            for item in batch:
                item["instances"] = item["instances"][:0]
        losses, _ = step(trainer, batch)
        count = sum(len(item["instances"]) for item in batch) / len(batch)
        kinds = {"num_pos": count, "num_semi_pos": 0, "num_neg": 0, "num_other": 0}
        assert method.metrics() == kinds
        assert (losses["loss_gid_feature"] > 0) == (losses["loss_gid_response_reg"] > 0) != without


# Pairs of which the methods need less than all.


def student_of(homes: dict[str, Path], teacher: str, tmp_path: Path, chosen: Any) -> Path:
    """A RetinaNet that learns from the cache of another family."""
    home = homes[teacher]
    nodes = {**NODES_OF_ALL, "DISTILL": {"METHODS": list(chosen)}}
    return write_retinanet(home, tmp_path, "exact", **nodes)


@pytest.mark.parametrize("teacher", ["FCOS", "FasterRCNN"])
def test_a_retinanet_learns_features_from_another_family(
    homes: dict[str, Path], tmp_path: Path, teacher: str
) -> None:
    chosen = (*FEATURES, "pseudo")
    path = student_of(homes, teacher, tmp_path, chosen)
    cached, live = (
        losses_of(train(path, "TEACHER.SOURCE", source, "OUTPUT_DIR", tmp_path / source))
        for source in ("cache", "live")
    )
    assert cached == live and all(map(any, cached.values()))
    trainer = build(path)
    names = list(trainer.distiller.methods[0].pair.levels)
    assert names == (["p3", "p4", "p5", "p6"] + (["p7"] if teacher == "FCOS" else []))


def test_a_teacher_of_other_classes_teaches_features(
    homes: dict[str, Path], tmp_path: Path
) -> None:
    home = tmp_path / "other"
    home.mkdir()
    (home / "data").symlink_to(homes["RetinaNet"] / "data")
    model = {
        **RETINANET["MODEL"],
        "RETINANET": {**RETINANET["MODEL"]["RETINANET"], "NUM_CLASSES": 7},
    }
    cfg = write_config(home / "teacher.yaml", {**RETINANET, "MODEL": model})
    export_model(random_detector(cfg, seed=1), home / "teacher.pth")
    target = tmp_path / "student"
    target.mkdir()
    path = write_retinanet(home, target, "exact", DISTILL={"METHODS": ["pkd"]})
    dump(load_config(str(path)))
    assert any(losses_of(train(path))["loss_pkd"])
    with pytest.raises(ValueError, match="number of classes: student 5, teacher 7; the method frs"):
        build(path, "DISTILL.METHODS", "('frs',)")


@pytest.mark.parametrize("chosen", ["gid", "frs", "boxes"])
def test_what_a_method_cannot_pair_is_refused_by_its_name(
    homes: dict[str, Path], tmp_path: Path, chosen: str
) -> None:
    with pytest.raises(ValueError) as error:
        build(student_of(homes, "FCOS", tmp_path, ["pkd", chosen]))
    text = str(error.value)
    assert "student 3, teacher 1" in text and f"the method {chosen} needs" in text
    assert "\n" not in text


def test_detections_teach_a_student_of_other_levels(homes: dict[str, Path], tmp_path: Path) -> None:
    path = student_of(homes, "FasterRCNN", tmp_path, ["pseudo"])
    steps = ("TEACHER.SOURCE", "live", "CACHE.LEVELS", "('p2',)", "SOLVER.MAX_ITER", 2)
    trainer = train(path, *steps)
    assert not trainer.distiller.methods[0].pair.levels
    assert len(losses_of(trainer)["loss_cls"]) == 2


# Wrong input.


def test_an_unknown_method_is_refused_with_the_nearest_one(write: Write) -> None:
    with pytest.raises(ValueError, match=r"'pdk', did you mean pkd\? .*pseudo \(one of y"):
        build(write(DISTILL={"METHODS": ["gid", "pdk"]}))


def test_a_run_of_other_methods_is_not_resumed(write: Write) -> None:
    train(write(DISTILL={"METHODS": ["pkd"]}), "SOLVER.MAX_ITER", 1)
    trainer = build(write(DISTILL={"METHODS": ["pkd", "mgd"]}))
    with pytest.raises(
        ValueError, match=r"begun with DISTILL.METHODS \('pkd',\), not \('pkd', 'mg"
    ):
        trainer.resume_or_load(resume=True)


def test_layers_of_another_form_are_not_resumed(write: Write) -> None:
    path = write(DISTILL={"METHODS": ["mgd"]})
    train(path, "SOLVER.MAX_ITER", 1)
    trainer = build(path)
    trainer.distiller.methods[0].register_buffer("seen", torch.zeros(()))
    expected = (
        r'pth: the method mgd has other layers .*: Missing key.*: "seen"\. Go on .* OUTPUT_DIR$'
    )
    with pytest.raises(ValueError, match=expected):
        trainer.resume_or_load(resume=True)


@pytest.mark.parametrize("chosen", ["cwd", "fgd"])
def test_a_preset_that_is_too_coarse_for_a_method_is_refused(
    homes: dict[str, Path], tmp_path: Path, chosen: str
) -> None:
    given = {"LOCATION": str(tmp_path / "cache"), "PRESET": "compact"}
    path = write_retinanet(homes["RetinaNet"], tmp_path, "compact", CACHE=given)
    dump(load_config(str(path)))
    message = f"preset compact, which is too coarse for the method {chosen}: .* Dump a cache in bal"
    with pytest.raises(ValueError, match=message):
        build(path, "DISTILL.METHODS", str(("pkd", chosen)))
    build(path, "DISTILL.METHODS", "('pkd',)")


def test_levels_that_are_not_shared_are_refused(write: Write) -> None:
    with pytest.raises(ValueError, match=r"PKD.LEVELS: 'p9'; expected some of p\d, "):
        build(write(DISTILL={"METHODS": ["pkd"]}, PKD={"LEVELS": ["p9"]}))


def test_a_signal_that_a_cache_lacks_is_named_with_the_method(
    homes: dict[str, Path], tmp_path: Path
) -> None:
    given = {"LOCATION": str(tmp_path / "cache"), "SIGNALS": ["scores", "deltas"]}
    path = write_retinanet(homes["RetinaNet"], tmp_path, "exact", CACHE=given)
    dump(load_config(str(path)))
    for chosen, name in ((("boxes", "pkd"), "pkd"), (("mgd",), "mgd")):
        with pytest.raises(ValueError) as error:
            build(path, "DISTILL.METHODS", str(chosen))
        assert f"lacks the signal features, which the method {name} needs" in str(error.value)
        assert f"leave {name} out of DISTILL.METHODS" in str(error.value)
    build(path, "DISTILL.METHODS", "('boxes',)")


def test_what_gid_chooses_by_cannot_be_weighed_away(homes: dict[str, Path], tmp_path: Path) -> None:
    given = {"LOCATION": str(tmp_path / "cache"), "SIGNALS": ["features"]}
    path = write_retinanet(homes["RetinaNet"], tmp_path, "exact", CACHE=given)
    dump(load_config(str(path)))
    with pytest.raises(ValueError, match=r"lacks the signal scores.*or leave gid out"):
        build(path)


def method_of(name: str, **body: Any) -> type[Method]:
    """A method of the user's that gives nothing but a sum; see `registry`."""

    class Mine(Method):
        Config = NODES["MINE"]
        weights: ClassVar[dict[str, str]] = {"": "weight"}

        @classmethod
        def needs(cls, config: Any) -> tuple[str, ...]:
            return ("features",)

        def forward(self, step: Any, chosen: None) -> dict[str, torch.Tensor]:
            return {"": step.outputs.features[0].sum()}

    return type("Mine", (Mine,), {"name": name, **body})


@pytest.fixture
def registry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The node MINE; what a test registers is forgotten after it."""
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))
    with patch.dict(NODES):
        weight = [("weight", float, 1.0)]
        register_node(make_dataclass("Mine", weight, namespace={"node": "MINE"}, frozen=True))
        yield


@pytest.mark.usefixtures("registry")
def test_a_term_with_the_name_of_an_own_loss_is_refused(
    homes: dict[str, Path], tmp_path: Path
) -> None:
    register_method(method_of("cls"))
    trainer = build(student_of(homes, "RetinaNet", tmp_path, ["cls"]))
    with pytest.raises(ValueError, match="the method cls gives loss_cls"):
        trainer.train()


TERMS = r"\.forward: expected scalar tensors by the names in weights \('',\), got "
ONE = torch.zeros(())


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("question", "answer", "message"),
    [
        ("forward", {"": torch.zeros(2)}, TERMS + r"{'': a tensor of shape \(2,\)}"),
        ("forward", {"": 1.0}, TERMS + "{'': float}"),
        ("forward", {"": ONE, "x": ONE}, TERMS + r"{'': a tensor .*, 'x': a tensor .*}"),
        ("forward", [ONE], TERMS + "a list of 1"),
        ("forward", None, TERMS + "None"),
        ("forward", {"": 1j * ONE}, TERMS + r"{'': a complex tensor of shape \(\)}"),
        (
            "forward",
            {"": ONE.to("meta")},
            r"\.forward: expected the term '' on cpu, .*, got a tensor of shape \(\) on meta",
        ),
        ("ground_truth", None, r"\.ground_truth: expected a list of 3 Instances, .*, got None"),
        ("ground_truth", [1], r"\.ground_truth: expected a list of 3 Ins.*, got a list of 1"),
        ("metrics", None, r"\.metrics: expected numbers by name, got None"),
        ("metrics", {"x": "1"}, r"\.metrics: expected numbers by name, got {'x': str}"),
        (
            "metrics",
            {"x": np.ones(2)},
            r"\.metrics: expected numbers by name, got {'x': an array of shape \(2,\)}",
        ),
    ],
)
def test_a_method_that_answers_otherwise_is_named(
    homes: dict[str, Path], tmp_path: Path, question: str, answer: Any, message: str
) -> None:
    register_method(method_of("mine", **{question: lambda self, *of: answer}))
    trainer = build(student_of(homes, "RetinaNet", tmp_path, ["mine"]))
    batch = next(iter(trainer.build_train_loader(trainer.cfg)))
    with EventStorage(), pytest.raises(ValueError, match=rf"^the method mine: .*Mine{message}$"):
        trainer.distiller(batch)


@pytest.mark.usefixtures("registry")
def test_a_layer_that_a_step_makes_is_refused(homes: dict[str, Path], tmp_path: Path) -> None:
    def forward(self: Any, step: Any, chosen: None) -> dict[str, torch.Tensor]:
        self.adapter = torch.nn.Conv2d(step.outputs.features[0].shape[1], 8, 1)
        return {"": self.adapter(step.outputs.features[0]).sum()}

    register_method(method_of("mine", forward=forward))
    trainer = build(student_of(homes, "RetinaNet", tmp_path, ["pkd", "mine"]))
    with pytest.raises(ValueError, match=r"^the method mine: its weight adapter\.weight was made"):
        trainer.train()


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "My_Own"}, r"\.name: expected lower-case letters and digits, got 'My_Own'"),
        ({"name": "gid"}, r"are the method 'gid'; rename one"),
        ({"Config": object}, r"\.Config: expected a node that register_node made known"),
        ({"weights": {"": "wieght"}}, r"\.weights: MINE has no key WIEGHT"),
        ({"weights": ("weight",)}, r"\.weights: expected names of .* of MINE, got \('weight',\)"),
        ({"weights": {"": 3}}, r"\.weights: expected names of .* of MINE, got {'': 3}"),
        (
            {"needs": lambda self, config: ()},
            r"\.needs: .* that takes \(cls, config\)",
        ),
        ({"needs": property(lambda self: ())}, r"Mine\.needs: expected a @classmethod that takes"),
        ({"check": lambda self, config, setup: None}, r"\.check: .* takes \(cls, config, setup\)"),
        ({"needs_unlabelled": DETECTIONS}, r"\.needs_unlabelled: .* a tuple, .*, got 'detections'"),
        ({one: vars(Method)[one] for one in ("needs", "forward")}, "lacks needs, forward, which"),
    ],
)
def test_a_method_that_cannot_be_registered_says_why(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        register_method(method_of(**{"name": "mine", **changes}))


@pytest.mark.usefixtures("registry")
def test_two_methods_may_share_a_node() -> None:
    for name in ("mine", "other"):
        register_method(method_of(name))
    assert methods.get_method("mine").Config is methods.get_method("other").Config


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    "needs",
    [
        classmethod(lambda cls, config: frozenset({"features"})),
        classmethod(lambda cls, config: iter(["features"])),
        staticmethod(lambda config: ["features"]),
    ],
    ids=["a set", "an iterator", "a list of a static method"],
)
def test_needs_are_names_in_whatever_can_be_iterated(
    homes: dict[str, Path], tmp_path: Path, needs: Any
) -> None:
    register_method(method_of("mine", needs=needs))
    trainer = build(student_of(homes, "RetinaNet", tmp_path, ["mine"]))
    assert needs_of(trainer.setup) == {"features": ["mine"]}


@pytest.mark.parametrize(
    "value",
    [1, 0.5, True, np.bool_(1), np.float32(1), np.array(1.0), ONE, torch.ones(1, 1)],
    ids=repr,
)
def test_metrics_are_whatever_the_log_makes_numbers_of(value: Any) -> None:
    metrics = {"x": value}
    assert checked_metrics(Method({}, None), metrics) is metrics  # type: ignore[arg-type]
    with EventStorage() as storage:
        storage.put_scalar("x", value)


def test_what_is_no_whole_method_is_refused() -> None:
    for other in (object, torch.nn.Identity, methods.build_methods):
        with pytest.raises(ValueError, match=r"\w: expected a class that derives from Method"):
            register_method(other)  # type: ignore[type-var]
    with pytest.raises(ValueError, match="Method lacks name, Config, weights, needs, forward, "):
        register_method(Method)


def test_a_method_whose_module_the_teacher_s_config_alone_names_is_refused(
    homes: dict[str, Path], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    cfg = load_config(str(student_of(homes, "RetinaNet", tmp_path, ["mine"])))
    setup = Setup(cfg)
    assert setup.settings.distill.methods == ("mine",)  # read before the module is imported
    request.getfixturevalue("registry")
    register_method(method_of("mine"))
    with pytest.raises(ValueError, match=rf"METHODS: the module {__name__}, .*name it by IMPORTS"):
        chosen_methods(setup)


@pytest.mark.usefixtures("registry")
@pytest.mark.parametrize(
    ("needs", "message"),
    [
        (("feature",), "needs the feature of .* a RetinaNet, has features, scores, deltas, detec"),
        ("features", r"Mine\.needs: expected names in a tuple, .*, got 'features'"),
        (None, r"Mine\.needs: expected names in a tuple, .*, got None"),
        ((1,), r"Mine\.needs: expected names in a tuple, .*, got \(1,\)"),
    ],
)
def test_needs_that_name_no_signal_are_refused(
    homes: dict[str, Path], tmp_path: Path, needs: Any, message: str
) -> None:
    register_method(method_of("mine", needs=classmethod(lambda cls, config: needs)))
    with pytest.raises(ValueError, match=message):
        build(student_of(homes, "RetinaNet", tmp_path, ["mine"]))


def test_every_shipped_method_has_a_node_and_its_weights_are_keys_of_it() -> None:
    for name, method in methods._METHODS.items():
        assert method.name == name and NODES[method.Config.node] is method.Config
        assert all(hasattr(method.Config(), field) for field in method.weights.values())


def test_needs_say_which_methods_have_them(write: Write) -> None:
    cfg = load_config(str(write(DISTILL={"METHODS": ["pkd", "frs"]})))
    register_data(cfg)
    setup = Setup(cfg)
    assert needs_of(setup) == {"features": ["pkd", "frs"], "scores": ["frs"]}
    assert [method.name for method, _ in chosen_methods(setup)] == ["pkd", "frs"]
    teacher = open_teacher(setup, [])
    assert teacher is not None
    assert {one.name for one in teacher.pair.stored.signals} == {"features", "scores"}
