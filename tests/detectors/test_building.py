"""What detectron2 raises while it builds a model is told as the fault of a config's key."""

import copy
import sys
from collections.abc import Callable, Iterator
from dataclasses import make_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
import torch
import yaml
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_backbone
from torch import Tensor

from configs.loader import default_config, load_config
from configs.nodes import NODES, register_node
from detectors import DetectorFamily, family_of
from detectors.building import build_detector, naming_the_config, of_the_model
from stage1_dump.__main__ import main as dump_main
from tests.tiny import DETECTOR, FASTER_RCNN, random_batch, random_detector

Write = Callable[..., Path]

FCOS_NODES = {"META_ARCHITECTURE": "FCOS", "BACKBONE.NAME": "build_fcos_resnet_fpn_backbone"}
# A change of a tiny RetinaNet, and how the error goes on after `file: `.
WRONG: list[tuple[dict[str, Any], str]] = [
    ({"BACKBONE.NAME": "build_foo"}, "MODEL.BACKBONE.NAME is 'build_foo'"),
    (
        {"RESNETS.DEPTH": 18, "RESNETS.RES2_OUT_CHANNELS": 32},
        "MODEL.RESNETS.RES2_OUT_CHANNELS is 32",
    ),
    ({"RESNETS.NORM": "XX"}, "MODEL.RESNETS.NORM is 'XX'"),
    ({"FPN.NORM": "XX"}, "MODEL.FPN.NORM is 'XX'"),
    ({"FPN.IN_FEATURES": ["res3", "res6"]}, "MODEL.FPN.IN_FEATURES is ['res3', 'res6']"),
    ({"FPN.IN_FEATURES": ["res3", "res5"]}, "MODEL.FPN.IN_FEATURES is ['res3', 'res5']"),
    ({"FPN.IN_FEATURES": []}, "MODEL.FPN.IN_FEATURES is []"),
    ({"RESNETS.OUT_FEATURES": ["res7"]}, "MODEL.RESNETS.OUT_FEATURES is ['res7']"),
    ({"RETINANET.IN_FEATURES": ["p3", "p9"]}, "MODEL.RETINANET.IN_FEATURES is ['p3', 'p9']"),
    ({"RETINANET.IN_FEATURES": ["stage"]}, "MODEL.RETINANET.IN_FEATURES is ['stage']"),
    ({"ANCHOR_GENERATOR.SIZES": [[8], [16]]}, "MODEL.ANCHOR_GENERATOR.SIZES is [[8], [16]]"),
    ({"ANCHOR_GENERATOR.NAME": "foo"}, "MODEL.ANCHOR_GENERATOR.NAME is 'foo'"),
    (
        {"ANCHOR_GENERATOR.SIZES": [[8], [16], [32], [64], [1, 2]]},
        "MODEL.RETINANET.IN_FEATURES is ['p3', 'p4', 'p5', 'p6', 'p7']; ",
    ),
    (
        {**FCOS_NODES, "FCOS.IN_FEATURES": ["p3", "p9"]},
        "MODEL.FCOS.IN_FEATURES is ['p3', 'p9']",
    ),
    (
        {"RESNETS.DEPTH": 34, "RESNETS.RES2_OUT_CHANNELS": 64, "RESNETS.NUM_GROUPS": 2},
        "MODEL.RESNETS.NUM_GROUPS is 2",
    ),
]
# The backbone and the anchors are not concerned.
WRONG_BESIDE = [
    (
        {"RETINANET.IOU_LABELS": [0, 1]},
        "MODEL.RETINANET.IOU_THRESHOLDS is [0.4, 0.5]; ",
    ),
    (
        FCOS_NODES,  # 8 channels cannot be normalised in 32 groups
        "MODEL.FCOS.IN_FEATURES is ['p3', 'p4', 'p5', 'p6', 'p7']; ",
    ),
    ({"META_ARCHITECTURE": "Foo"}, "MODEL.META_ARCHITECTURE is 'Foo'"),
]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write the config of a tiny RetinaNet with changes in its node MODEL."""

    def written(changes: dict[str, Any]) -> Path:
        content = yaml.safe_load(yaml.safe_dump(DETECTOR))
        for key, value in copy.deepcopy(changes).items():
            node = content["MODEL"]
            *parents, name = key.split(".")
            for parent in parents:
                node = node.setdefault(parent, {})
            node[name] = value
        path = tmp_path / "model.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return written


def refusal_of(path: Path, ask: Callable[[CfgNode], Any]) -> str:
    with pytest.raises(ValueError) as error:
        ask(load_config(str(path)))
    (line,) = str(error.value).splitlines()
    assert line.startswith(f"{path}")
    return line


@pytest.mark.parametrize(("changes", "named"), WRONG + WRONG_BESIDE, ids=str)
def test_what_cannot_be_built_names_file_key_and_value(
    write: Write, changes: dict[str, Any], named: str
) -> None:
    line = refusal_of(write(changes), build_detector)
    assert f": {named}" in line and ": detectron2 cannot build a model of it (" in line


# Changes of a tiny Faster R-CNN.
WRONG_TWO_STAGES: list[tuple[dict[str, Any], str]] = [
    ({"RPN.IOU_LABELS": [0, 1]}, "MODEL.RPN.IOU_THRESHOLDS is [0.4, 0.5]; "),
    ({"ROI_HEADS.IOU_LABELS": [0, -1, 1]}, "MODEL.ROI_HEADS.IOU_THRESHOLDS is [0.5]; "),
    ({"ROI_HEADS.IN_FEATURES": ["p2", "p4"]}, "MODEL.ROI_HEADS.IN_FEATURES is ['p2', 'p4']"),
    ({"RPN.IN_FEATURES": ["p2", "p9"]}, "MODEL.RPN.IN_FEATURES is ['p2', 'p9']"),
    ({"RPN.HEAD_NAME": "MyHead"}, "MODEL.RPN.HEAD_NAME is 'MyHead'"),
    ({"ROI_BOX_HEAD.NUM_FC": 0}, "MODEL.ROI_BOX_HEAD.NUM_CONV is 0; "),
    ({"ROI_BOX_HEAD.NAME": "MyHead"}, "MODEL.ROI_BOX_HEAD.NAME is 'MyHead'"),
    ({"ANCHOR_GENERATOR.SIZES": [[8], [16]]}, "MODEL.ANCHOR_GENERATOR.SIZES is [[8], [16]]"),
]


@pytest.mark.parametrize(("changes", "named"), WRONG_TWO_STAGES, ids=str)
def test_so_does_a_two_stage_detector(write: Write, changes: dict[str, Any], named: str) -> None:
    line = refusal_of(write({**FASTER_RCNN, **changes}), build_detector)
    assert f": {named}" in line


@pytest.mark.parametrize(("changes", "named"), WRONG, ids=str)
def test_so_does_the_geometry_which_builds_no_whole_model(
    write: Write, changes: dict[str, Any], named: str
) -> None:
    line = refusal_of(write(changes), lambda cfg: family_of(cfg).geometry(cfg, 64, 64))
    assert f": {named}" in line


Register = Callable[[str], Path]


@pytest.fixture
def register(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Register]:
    """Register `build_mine`, of a module of the user's with this text below its imports."""
    imports = (
        "from detectron2.layers import Conv2d, get_norm; "
        "from detectron2.modeling import FPN, Backbone, BACKBONE_REGISTRY as known; "
        "resnet = known.get('build_resnet_backbone')\n"
    )

    def registered(text: str) -> Path:
        # A folder that has detectron2 in its name is not detectron2.
        path = tmp_path / "my_detectron2" / "my_models.py"
        path.parent.mkdir()
        path.write_text(imports + text)
        module = ModuleType("my_models")
        module.__file__ = str(path)
        monkeypatch.setitem(sys.modules, "my_models", module)
        exec(compile(path.read_text(), str(path), "exec"), vars(module))
        BACKBONE_REGISTRY._obj_map["build_mine"] = vars(module)["build_mine"]
        return path

    with patch.dict(BACKBONE_REGISTRY._obj_map):
        yield registered


@pytest.mark.parametrize(
    ("text", "at", "reason"),
    [
        (
            "def build_mine(cfg, shape):\n  one, two = 1, 2, 3",
            3,
            "ValueError: too many values to u",
        ),
        ("def build_mine(cfg, shape):\n  Conv2d('a', 3, 3)", 3, "TypeError: "),
        ("def build_mine(cfg, shape):\n  get_norm('YY', 3)", 3, "KeyError: 'YY'"),
        (
            "class Mine(Backbone):\n  forward = None\ndef build_mine(cfg, shape):\n  return Mine()",
            2,
            "AttributeError: 'Mine' object has no attribute '_out_feature",
        ),
    ],
    ids=["itself", "a layer", "a norm", "lacking what detectron2 reads"],
)
def test_code_of_the_user_s_that_fails_is_not_blamed_on_a_key(
    write: Write, register: Register, text: str, at: int, reason: str
) -> None:
    module = register(text)
    line = refusal_of(write({"BACKBONE.NAME": "build_mine"}), build_detector)
    stated = "MODEL.BACKBONE.NAME is 'build_mine': code of yours fails while the model is built"
    assert f"{stated}: {reason}" in line
    assert line.endswith(f"({module}:{at})")


@pytest.mark.parametrize(
    ("call", "changes", "named"),
    [
        ("resnet(cfg, shape)", {"RESNETS.NORM": "XX"}, "MODEL.RESNETS.NORM is 'XX'"),
        (
            "FPN(resnet(cfg, shape), cfg.MODEL.FPN.IN_FEATURES, 8)",
            {"FPN.IN_FEATURES": []},
            "MODEL.FPN.IN_FEATURES is []",
        ),
    ],
)
def test_a_network_of_detectron2_s_below_the_user_s_builder_is(
    write: Write, register: Register, call: str, changes: dict[str, Any], named: str
) -> None:
    module = register(f"def build_mine(cfg, shape):\n  return {call}")
    line = refusal_of(write({"BACKBONE.NAME": "build_mine", **changes}), build_detector)
    assert f": {named}: detectron2 cannot build a model of it (" in line
    assert line.endswith(f"; called in {module}:3)")


def test_a_plan_names_the_line_of_the_teacher_s_config(
    write: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = write({"BACKBONE.NAME": "build_foo"})
    line = teacher.read_text().splitlines().index("    NAME: build_foo") + 1
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.png").touch()
    annotations = tmp_path / "annotations" / "instances_train.json"
    annotations.parent.mkdir()
    image = '{"id": 1, "file_name": "a.png", "height": 64, "width": 64}'
    annotations.write_text(
        f'{{"images": [{image}], "annotations": [], "categories": [{{"id": 1, "name": "a"}}]}}'
    )
    content = {
        "VERSION": 2,
        "DATASET": {"FOLDER": str(tmp_path)},
        "DATASETS": {"TRAIN": ["folder_train"]},
        "TEACHER": {"CONFIG": "model.yaml", "WEIGHTS": "teacher.pth"},
        "CACHE": {"LOCATION": str(tmp_path / "cache")},
    }
    path = tmp_path / "student.yaml"
    path.write_text(yaml.safe_dump(content))

    assert dump_main(["plan", "--config-file", str(path)]) == 1

    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {teacher}:{line}: MODEL.BACKBONE.NAME is 'build_foo': ")


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("CUDA error: busy"), OSError("x")],
)
def test_a_fault_of_the_machine_is_not_one_of_the_config(write: Write, error: Exception) -> None:
    cfg = load_config(str(write({})))
    with pytest.raises(type(error)) as caught, naming_the_config(cfg):
        raise error
    assert caught.value is error


class _Renamed(Backbone):
    """A pyramid whose maps have names that tell nothing, at the strides of p3 to p7."""

    def __init__(self, cfg: CfgNode, input_shape: ShapeSpec) -> None:
        super().__init__()
        self.inner = BACKBONE_REGISTRY.get("build_retinanet_resnet_fpn_backbone")(cfg, input_shape)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return dict(zip("abcde", self.inner(x).values(), strict=True))

    def output_shape(self) -> dict[str, ShapeSpec]:
        return dict(zip("abcde", self.inner.output_shape().values(), strict=True))

    @property
    def size_divisibility(self) -> int:
        size: int = self.inner.size_divisibility
        return size


@pytest.fixture
def renamed() -> Any:
    """Register that backbone for one test."""
    name = "build_renamed_backbone"
    BACKBONE_REGISTRY._obj_map[name] = _Renamed
    yield name
    del BACKBONE_REGISTRY._obj_map[name]


def test_strides_are_those_of_the_backbone_whatever_its_maps_are_called(
    write: Write, renamed: str
) -> None:
    changes = {"BACKBONE.NAME": renamed, "RETINANET.IN_FEATURES": list("bcde")}
    sizes = {"ANCHOR_GENERATOR.SIZES": [[16, 20], [32, 40], [64, 80], [128, 160]]}
    cfg = load_config(str(write(changes | sizes)))
    family: DetectorFamily = family_of(cfg)

    assert family.levels(cfg) == {"b": 16, "c": 32, "d": 64, "e": 128}
    assert family.size_divisibility(cfg) == 32

    model = random_detector(cfg, seed=0)
    outputs = family.run(model, random_batch([(64, 96)]))
    geometry = family.geometry(cfg, 64, 96)
    assert list(geometry.level_sizes) == outputs.level_sizes
    for signal in family.signals(cfg):
        assert outputs.signals()[signal.name].shape == (1, *signal.shape(geometry))


def test_anchors_in_detectron2_s_short_form_are_counted(write: Write) -> None:
    short = {"ANCHOR_GENERATOR.SIZES": [8, 16], "ANCHOR_GENERATOR.ASPECT_RATIOS": [0.5, 1.0, 2.0]}
    cfg = load_config(str(write(short)))
    scores = next(one for one in family_of(cfg).signals(cfg) if one.name == "scores")
    assert scores.sizes["anchors"] == 6


def test_the_backbone_is_built_once_a_config_and_draws_nothing(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    from detectors.families import dense

    built = []

    def counted(cfg: CfgNode) -> Backbone:
        built.append(cfg)
        return build_backbone(cfg)

    monkeypatch.setattr(dense, "build_backbone", counted)
    # Nobody else asks for this width.
    cfg = load_config(str(write({"FPN.OUT_CHANNELS": 11})))
    before = torch.get_rng_state()

    for _ in range(3):
        assert family_of(cfg).channels(cfg) == 11
    other = cfg.clone()
    other.MODEL.WEIGHTS, other.MODEL.DEVICE = "a.pth", "cuda"
    family_of(other).levels(other)
    assert len(built) == 1
    other.MODEL.FPN.OUT_CHANNELS = 13
    assert family_of(other).channels(other) == 13
    assert len(built) == 2
    assert torch.equal(torch.get_rng_state(), before)


def test_a_failure_is_not_remembered(write: Write) -> None:
    answers = iter([KeyError("p9"), 5])

    @of_the_model
    def ask(_cfg: CfgNode) -> int:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    cfg = load_config(str(write({})))
    with pytest.raises(ValueError, match="cannot build"):
        ask(cfg)
    assert ask(cfg) == ask(cfg) == 5


def test_a_model_with_another_user_s_node_is_asked_anew() -> None:
    asked = of_the_model(lambda cfg: int(cfg.MINE.WIDTH))
    with patch.dict(NODES):
        register_node(make_dataclass("Mine", [("width", int, 1)], namespace={"node": "MINE"}))
        cfg = default_config()
        assert asked(cfg) == 1
        cfg.MINE.WIDTH = 2
        assert asked(cfg) == 2
