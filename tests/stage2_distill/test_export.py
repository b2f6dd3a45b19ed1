"""A trained student in the hands of detectron2 alone, as docs/EXPORT.md has it."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import make_dataclass
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import numpy as np
import pytest
import torch
import yaml
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode, get_cfg
from detectron2.data.detection_utils import read_image
from detectron2.engine import DefaultPredictor
from detectron2.layers import ShapeSpec
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY, build_model
from detectron2.modeling.backbone.fpn import build_retinanet_resnet_fpn_backbone
from PIL import Image
from torch import nn

from configs.loader import settings
from configs.nodes import NODES, register_node
from dataset.synthetic import SyntheticConfig, write_synthetic
from detectors import Setup, export_model
from detectors.evaluate import evaluate
from detectors.fcos_model import FCOS as FcosOfConfig
from detectors.plain_config import plain_config
from tests.detectors.backbones.cases import model as on_backbone
from tests.fresh import stdout_of
from tests.stage2_distill.conftest import Configure
from tests.stage2_distill.runs import train
from tests.tiny import DETECTOR, FASTER_RCNN, FCOS, random_detector, write_config

ROOT = Path(__file__).parents[2]
BLOCKS = re.findall(
    r"^```python\n(.*?)^```$", (ROOT / "docs/EXPORT.md").read_text(), re.DOTALL | re.MULTILINE
)
YAML, FCOS_PY, DETECT, EVALUATE, TRACE = BLOCKS
# What the traced model gives for an image of another size, beside the model itself.
COMPARE = """
other = torch.randint(0, 256, (3, 80, 64)).float()
with torch.no_grad():
    eager = detect(model, [{"image": other}])[0]["instances"]
    again = torch.jit.load("student.ts")(other)
again = adapter.outputs_schema(again)[0]["instances"]
assert len(eager) == len(again) > 0
assert torch.equal(eager.pred_boxes.tensor, again.pred_boxes.tensor)
assert all(torch.equal(eager.get(name), again.get(name)) for name in ("scores", "pred_classes"))
"""
TELL = """
print(json.dumps(found.pred_boxes.tensor.tolist()))
"""
RUN = """
import json, os, sys
for folder, text in json.loads(sys.stdin.read()):
    os.chdir(folder)
    exec(text, {"json": json})
ours = {"configs", "dataset", "detectors", "stage2_distill", "storage"}
assert not ours & {name.split(".")[0] for name in sys.modules}
"""
SIZES = {"INPUT": {"MIN_SIZE_TEST": 64, "MAX_SIZE_TEST": 96}, "DATALOADER": {"NUM_WORKERS": 0}}
FAMILIES: dict[str, dict[str, Any]] = {
    "retinanet": DETECTOR["MODEL"],
    "faster_rcnn": FASTER_RCNN,
    "fcos": {**DETECTOR["MODEL"], **FCOS},
}


def exported(folder: Path, model: dict[str, Any]) -> CfgNode:
    """Write what a training leaves of a student, of random weights; its config."""
    folder.mkdir()
    write_synthetic(folder / "data", SyntheticConfig(train=1, val=2, size=90), workers=1)
    cfg = write_config(folder / "config.yaml", {**DETECTOR, **SIZES, "MODEL": model})
    cfg.MODEL.WEIGHTS = str(folder / "student_final.pth")
    export_model(random_detector(cfg, seed=1), folder / "student_final.pth")
    text = Setup(cfg).family.lazy_config(cfg)
    name, text = ("py", text) if text else ("yaml", plain_config(cfg, Path("student_final.pth")))
    (folder / f"student_final.{name}").write_text(text)
    pixels = np.random.default_rng(0).integers(0, 256, (100, 120, 3), np.uint8)
    Image.fromarray(pixels).save(folder / "image.jpg")
    return cfg


def test_the_page_s_examples_run_without_this_project(tmp_path: Path) -> None:
    cfgs = {name: exported(tmp_path / name, model) for name, model in FAMILIES.items()}
    traced = TRACE + COMPARE
    parts = {
        "retinanet": YAML + DETECT + EVALUATE + traced + TELL,
        "faster_rcnn": YAML + DETECT + traced + TELL,
        "fcos": FCOS_PY + traced,
    }
    said = stdout_of(
        [sys.executable, "-W", "ignore", "-c", RUN],
        cwd=tmp_path,
        input=json.dumps([(str(tmp_path / name), text) for name, text in parts.items()]),
        env={"PATH": "", "OMP_NUM_THREADS": "1"},
    )
    told = [json.loads(line) for line in said.splitlines() if line.startswith("[[")]
    for boxes, (name, cfg) in zip(told, cfgs.items(), strict=False):
        ours = DefaultPredictor(cfg)(read_image(str(tmp_path / name / "image.jpg"), "BGR"))
        assert len(boxes) == 5 and boxes == ours["instances"].pred_boxes.tensor.tolist()
    assert len(told) == 2


def test_a_training_leaves_a_config_that_stock_detectron2_reads(configure: Configure) -> None:
    trainer = train(configure())
    output = Path(trainer.cfg.OUTPUT_DIR)
    cfg = get_cfg()
    cfg.merge_from_file(str(output / "student_final.yaml"))
    assert Path(cfg.MODEL.WEIGHTS) == output / "student_final.pth"
    assert cfg.OUTPUT_DIR == get_cfg().OUTPUT_DIR
    model = build_model(cfg)
    assert not DetectionCheckpointer(model).load(cfg.MODEL.WEIGHTS)
    ours = evaluate(trainer.cfg, trainer.detector.eval())["folder_val"]
    assert evaluate(trainer.cfg, model.eval())["folder_val"] == ours
    assert cfg.SOLVER.BASE_LR == trainer.cfg.SOLVER.BASE_LR


def built_by_its_first_lines(folder: Path, text: str) -> CfgNode:
    """The config that the lines of the comment make."""
    path = folder / "student_final.yaml"
    path.write_text(text)
    steps = "\n".join(re.findall(r"^#     (.*)$", text, re.MULTILINE))
    names: dict[str, Any] = {"get_cfg": get_cfg}
    exec(steps.replace(path.name, str(path)), names)
    return names["cfg"]


@pytest.mark.parametrize(
    "content",
    [
        {"MODEL": on_backbone("mobilenet_v2")},
        {
            "MODEL": {
                **on_backbone("swin"),
                **FCOS,
                "BACKBONE": on_backbone("swin", "fcos_")["BACKBONE"],
            }
        },
    ],
    ids=["a backbone of ours", "an FCOS on one"],
)
def test_the_config_s_first_lines_say_what_else_is_needed(
    tmp_path: Path, content: dict[str, Any]
) -> None:
    ours = write_config(tmp_path / "config.yaml", {**DETECTOR, **content})
    found = built_by_its_first_lines(tmp_path, plain_config(ours, tmp_path / "student_final.pth"))
    assert_same_model(found, ours)


def assert_same_model(found: CfgNode, wanted: CfgNode) -> None:
    """Two configs build one model."""
    states = []
    for cfg in (found, wanted):
        torch.manual_seed(0)
        states.append(build_model(cfg).state_dict())
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


def of_its_node(cfg: CfgNode, shape: ShapeSpec) -> Any:
    """A user's backbone, which reads a node of the user's as docs/EXTENDING.md has it."""
    found = build_retinanet_resnet_fpn_backbone(cfg, shape)
    found.further = nn.Conv2d(settings(cfg)["MINE"].width, 1, 1)
    return found


def on_ours(cfg: CfgNode, shape: ShapeSpec) -> Any:
    """A user's backbone, around one of ours."""
    return BACKBONE_REGISTRY.get("build_retinanet_mobilenet_v2_fpn_backbone")(cfg, shape)


class OwnFcos(FcosOfConfig):
    """A user's detector, which derives from ours."""


@pytest.fixture
def registered() -> Iterator[None]:
    """As a module of the user's, `my_module`, leaves the registries."""
    with (
        patch.dict(sys.modules, my_module=ModuleType("my_module")),
        patch.dict(NODES),
        patch.dict(BACKBONE_REGISTRY._obj_map, of_its_node=of_its_node, on_ours=on_ours),
        patch.dict(META_ARCH_REGISTRY._obj_map, OwnFcos=OwnFcos),
    ):
        yield


def assert_first_lines_build(
    folder: Path, model: dict[str, Any], of_methods: tuple[str, ...] = (), **nodes: Any
) -> None:
    content = {**DETECTOR, "MODEL": model, "IMPORTS": ["my_module"], **nodes}
    cfg = write_config(folder / "config.yaml", content)
    text = plain_config(cfg, folder / "student_final.pth", of_methods)
    assert "#     import my_module\n" in text
    assert_same_model(built_by_its_first_lines(folder, text), cfg)


def test_the_first_lines_know_the_nodes_of_the_user_s_modules(
    registered: None, tmp_path: Path
) -> None:
    register_node(make_dataclass("Mine", [("width", int, 1)], namespace={"node": "MINE"}))
    model = {**DETECTOR["MODEL"], "BACKBONE": {"NAME": "of_its_node"}}
    assert_first_lines_build(tmp_path, model, MINE={"WIDTH": 2})


@pytest.mark.parametrize("width", [1, 5])
def test_a_backbone_may_read_the_node_of_a_method(
    registered: None, tmp_path: Path, width: int
) -> None:
    source = """
from detectron2.modeling.backbone.fpn import build_retinanet_resnet_fpn_backbone
from torch import nn
def of_the_method(cfg, shape):
    found = build_retinanet_resnet_fpn_backbone(cfg, shape)
    found.further = nn.Conv2d(cfg.MINE.WIDTH, 1, 1)
    return found
"""
    space = vars(sys.modules["my_module"])
    exec(source, space)
    BACKBONE_REGISTRY._obj_map["of_the_method"] = space["of_the_method"]
    register_node(make_dataclass("Mine", [("width", int, 1)], namespace={"node": "MINE"}))
    model = {**DETECTOR["MODEL"], "BACKBONE": {"NAME": "of_the_method"}}
    assert_first_lines_build(tmp_path, model, ("MINE",), MINE={"WIDTH": width})
    # As by default, the file is read without the method's module.
    kept = yaml.safe_load((tmp_path / "student_final.yaml").read_text()).get("MINE")
    assert kept == (None if width == 1 else {"WIDTH": width})


@pytest.mark.parametrize(
    "model",
    [
        {**on_backbone("mobilenet_v2"), "BACKBONE": {"NAME": "on_ours"}},
        {**DETECTOR["MODEL"], "FCOS": FCOS["FCOS"], "META_ARCHITECTURE": "OwnFcos"},
    ],
    ids=["a backbone around ours", "a detector that derives from ours"],
)
def test_the_first_lines_know_what_the_user_s_parts_are_made_of(
    registered: None, tmp_path: Path, model: dict[str, Any]
) -> None:
    assert_first_lines_build(tmp_path, model)


def test_a_user_s_part_of_detectron2_s_parts_needs_the_user_s_module_alone(
    registered: None, tmp_path: Path
) -> None:
    source = """
from detectron2.modeling.backbone.fpn import build_retinanet_resnet_fpn_backbone
def plain(cfg, shape):
    return build_retinanet_resnet_fpn_backbone(cfg, shape)
"""
    exec(source, vars(sys.modules["my_module"]))
    BACKBONE_REGISTRY._obj_map["plain"] = vars(sys.modules["my_module"])["plain"]
    model = {**DETECTOR["MODEL"], "BACKBONE": {"NAME": "plain"}}
    assert_first_lines_build(tmp_path, model)
    assert "add_config" not in (tmp_path / "student_final.yaml").read_text()


def test_the_config_of_a_resnet_needs_detectron2_alone(tmp_path: Path) -> None:
    cfg = write_config(tmp_path / "config.yaml", DETECTOR)
    text = plain_config(cfg, Path("student_final.pth"))
    assert "import" not in text.partition("\n\n")[0]
    assert yaml.safe_load(text).keys() <= get_cfg().keys()
