"""MobileNetV2, RegNet and Swin with FPN, as config builds them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import BACKBONE_REGISTRY, Backbone, build_backbone
from detectron2.modeling.backbone import SimpleFeaturePyramid, SwinTransformer
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torchvision.models import mobilenet_v2

from detectors import config_fingerprint, family_of
from detectors.backbones import MobileNetV2, neck_of
from detectors.building import build_detector
from tests.detectors.backbones.cases import NETS, model
from tests.tiny import DETECTOR, random_batch, random_detector, write_config

Configured = Callable[[dict[str, Any]], CfgNode]


@pytest.fixture
def configured(tmp_path: Path) -> Configured:
    """Load the config of a tiny detector with this node MODEL."""

    def load(node: dict[str, Any]) -> CfgNode:
        return write_config(tmp_path / "detector.yaml", {**DETECTOR, "MODEL": node})

    return load


def test_mobilenet_v2_is_torchvision_s_taken_apart() -> None:
    torch.manual_seed(0)
    whole = mobilenet_v2(width_mult=0.25).eval()
    names = ["c2", "c3", "c4", "c5"]
    ours = MobileNetV2(out_features=names, norm="FrozenBN", width=0.25).eval()
    missing, unknown = ours.load_state_dict(whole.state_dict(), strict=False)
    assert not missing
    rest = {".".join(name.split(".")[:2]) for name in unknown if "num_batches" not in name}
    assert rest == {"features.18", "classifier.1"}
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        found = ours(images)
        for name, last, stride in zip(names, (3, 6, 13, 17), (4, 8, 16, 32), strict=True):
            assert torch.equal(found[name], whole.features[: last + 1](images))
            shape = ours.output_shape()[name]
            assert (shape.stride, shape.channels) == (stride, found[name].shape[1])
            assert found[name].shape[2:] == (64 // stride, 96 // stride)


@pytest.mark.parametrize(("freeze_at", "frozen"), [(0, 0), (1, 2), (2, 4), (3, 7), (5, 18)])
def test_frozen_stages_of_mobilenet_v2_keep_weights_and_statistics(
    freeze_at: int, frozen: int
) -> None:
    names = ["c2", "c3", "c4", "c5"]
    net = MobileNetV2(out_features=names, norm="BN", width=0.1, freeze_at=freeze_at)
    assert len(net.features) == 18
    for number, block in enumerate(net.features):
        assert all(one.requires_grad == (number >= frozen) for one in block.parameters())
        kinds = {type(one) for one in block.modules() if "BatchNorm" in type(one).__name__}
        assert kinds == {FrozenBatchNorm2d if number < frozen else nn.BatchNorm2d}


@pytest.mark.parametrize("norm", ["BN", "SyncBN", "GN", "FrozenBN"])
def test_mobilenet_v2_has_the_norm_that_is_configured(norm: str) -> None:
    net = MobileNetV2(out_features=["c3"], norm=norm, width=0.3)
    kind = {"BN": nn.BatchNorm2d, "SyncBN": nn.SyncBatchNorm, "GN": nn.GroupNorm}.get(norm)
    assert sum(isinstance(one, kind or FrozenBatchNorm2d) for one in net.modules()) == 18
    assert len(net.features) == 7  # nothing behind the last map that is wanted


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    ("kind", "levels"), [("", "p3 p4 p5 p6"), ("retinanet_", "p3 p4 p5 p6 p7"), ("fcos_", "p3 p7")]
)
def test_every_builder_gives_its_detector_s_levels(
    configured: Configured, net: str, kind: str, levels: str
) -> None:
    backbone = build_backbone(configured(model(net, kind))).eval()
    with torch.no_grad():
        maps = backbone(torch.randn(1, 3, 64, 96))
    for name in levels.split():
        shape, stride = backbone.output_shape()[name], 2 ** int(name[1:])
        assert (shape.stride, shape.channels) == (stride, 8)
        assert maps[name].shape == (1, 8, -(-64 // stride), -(-96 // stride))
    if kind == "":
        assert len(maps) == 4 and torch.equal(maps["p6"], maps["p5"][:, :, ::2, ::2])
    else:
        c5 = list(backbone.bottom_up.output_shape().values())[-1].channels
        assert backbone.top_block.p6.in_channels == (c5 if kind == "retinanet_" else 8)


@pytest.mark.parametrize("net", NETS)
def test_an_r_cnn_trains_a_step_on_it(configured: Configured, net: str) -> None:
    levels = ["p3", "p4", "p5", "p6"]
    node = {
        **model(net, ""),
        "META_ARCHITECTURE": "GeneralizedRCNN",
        "ANCHOR_GENERATOR": {"SIZES": [[8], [16], [32], [64]]},
        "RPN": {"IN_FEATURES": levels},
        "ROI_HEADS": {"NAME": "StandardROIHeads", "IN_FEATURES": levels[:3], "NUM_CLASSES": 3},
        "ROI_BOX_HEAD": {"NAME": "FastRCNNConvFCHead", "NUM_FC": 1, "FC_DIM": 8},
    }
    detector = build_detector(configured(node)).train()
    with EventStorage():
        losses = detector(random_batch([(64, 96), (64, 64)]))
    total = torch.stack(list(losses.values())).sum()
    total.backward()
    assert torch.isfinite(total)
    assert all(one.grad is not None for one in detector.backbone.bottom_up.parameters())


@pytest.mark.parametrize("net", NETS)
def test_sizes_from_the_config_are_those_of_the_model_and_views_are_padded(
    configured: Configured, net: str
) -> None:
    cfg = configured(model(net))
    family = family_of(cfg)
    assert family.size_divisibility(cfg) == 32
    detector = random_detector(cfg, seed=0).eval()
    with torch.no_grad():
        outputs = family.run(detector, random_batch([(60, 90)]))
    assert list(family.geometry(cfg, 64, 96).level_sizes) == outputs.level_sizes


@pytest.mark.parametrize("net", NETS)
def test_a_teacher_s_fingerprint_holds_its_network(configured: Configured, net: str) -> None:
    node, _ = NETS[net]
    cfg = configured(model(net))
    before = config_fingerprint(cfg)
    assert _telling(net) in before["MODEL"][node]
    others = {name for name, _ in NETS.values()} - {node}
    assert not others & before["MODEL"].keys()
    cfg.MODEL[node][_telling(net)] = 48
    assert config_fingerprint(cfg) != before


def _telling(net: str) -> str:
    return {"mobilenet_v2": "WIDTH", "regnet": "W_0", "swin": "EMBED_DIM"}[net]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("freeze_at", [0, 1, 3, 5])
def test_all_that_is_not_frozen_has_a_gradient(
    configured: Configured, net: str, freeze_at: int
) -> None:
    """What lies behind the coarsest map would have none, which distributed training waits for."""
    _, keys = NETS[net]
    node = model(net, "", OUT_FEATURES=keys["OUT_FEATURES"][:2])
    node["BACKBONE"]["FREEZE_AT"] = freeze_at
    node["FPN"]["IN_FEATURES"] = keys["OUT_FEATURES"][:2]
    backbone = build_backbone(configured(node))
    assert list(backbone.output_shape()) == ["p3", "p4", "p5"]
    sum(one.sum() for one in backbone(torch.randn(2, 3, 64, 64)).values()).backward()
    parameters = list(backbone.bottom_up.parameters())
    assert all((one.grad is not None) == one.requires_grad for one in parameters)
    assert any(not one.requires_grad for one in parameters) == (freeze_at > 0)


@pytest.mark.parametrize(
    ("net", "changes", "refused"),
    [
        ("mobilenet_v2", {"OUT_FEATURES": ["c4", "c5"]}, "MODEL.FPN.IN_FEATURES is ['c3', "),
        ("regnet", {"OUT_FEATURES": ["s2", "s9"]}, "MODEL.REGNET.OUT_FEATURES is ['s2', 's9']"),
        ("regnet", {"W_0": 9}, "MODEL.REGNET.DEPTH is 4; "),
        ("swin", {"NUM_HEADS": [1, 1, 3, 2]}, "MODEL.SWIN.NUM_HEADS is [1, 1, 3, 2]"),
        ("swin", {"NUM_HEADS": [1, 1]}, "MODEL.SWIN.NUM_HEADS is [1, 1]"),
        (
            "swin",
            {"DEPTHS": [1, 1], "NUM_HEADS": [1, 1], "OUT_FEATURES": ["p1", "p2"]},
            "MODEL.SWIN.OUT_FEATURES is ['p1', 'p2']",
        ),
    ],
)
def test_what_cannot_be_built_names_its_key(
    configured: Configured, net: str, changes: dict[str, Any], refused: str
) -> None:
    with pytest.raises(ValueError) as error:
        build_detector(configured(model(net, **changes)))
    assert refused in str(error.value) and "\n" not in str(error.value)


def test_drop_path_without_timm_is_refused(
    configured: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detectors.backbones.swin.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"DROP_PATH_RATE is 0\.1: .*needs the package timm.* 0"):
        build_detector(configured(model("swin", DROP_PATH_RATE=0.1)))


def test_images_of_one_channel_are_refused(configured: Configured) -> None:
    node = {**model("regnet"), "PIXEL_MEAN": [1.0], "PIXEL_STD": [1.0]}
    with pytest.raises(ValueError, match=r"MODEL\.PIXEL_MEAN is \[1\.0\]: .*three channels"):
        build_detector(configured(node))


class _Patches(Backbone):
    """A network that takes images in squares of 16 pixels, as ViT does."""

    def __init__(self) -> None:
        super().__init__()
        self.squares = nn.Conv2d(3, 8, 16, stride=16)
        self._out_features = ["last"]
        self._out_feature_channels, self._out_feature_strides = {"last": 8}, {"last": 16}

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"last": self.squares(images)}


class _Padded(SimpleFeaturePyramid):
    @property
    def size_divisibility(self) -> int:
        return 32


def _simple(kind: type[SimpleFeaturePyramid], square: int = 0) -> Any:
    return lambda cfg, shape: kind(_Patches(), "last", 8, (2.0, 1.0, 0.5), square_pad=square)


def _bare_swin(cfg: CfgNode, _shape: Any) -> Backbone:
    return SwinTransformer(
        embed_dim=8, depths=(1, 1, 1), num_heads=(1, 1, 1), drop_path_rate=0.0, out_indices=(1, 2)
    )


# Another backbone to what is said of it; None where it works.
OTHERS: dict[str, tuple[Any, str | None]] = {
    "simple": (_simple(SimpleFeaturePyramid), r"SimpleFeaturePyramid .*size_divisibility, here 32"),
    "square": (_simple(_Padded, square=64), "pads every image to one square"),
    "bare": (_bare_swin, r"SwinTransformer .*size_divisibility, here 16"),
    "padded": (_simple(_Padded), None),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_backbone_that_would_pad_to_nothing_is_refused_with_the_way_out(
    configured: Configured, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    build, refused = OTHERS[name]
    monkeypatch.setitem(BACKBONE_REGISTRY._obj_map, name, build)
    levels = ["p1", "p2"] if name == "bare" else ["p3", "p4", "p5"]
    node = {**DETECTOR["MODEL"], "BACKBONE": {"NAME": name}}
    node["RETINANET"] = {**node["RETINANET"], "IN_FEATURES": levels}
    node["ANCHOR_GENERATOR"] = {
        **node["ANCHOR_GENERATOR"],
        "SIZES": [[8], [16], [32]][: len(levels)],
    }
    cfg = configured(node)
    family = family_of(cfg)
    if refused:
        with pytest.raises(ValueError, match=rf"MODEL\.BACKBONE\.NAME is '{name}': .*{refused}"):
            family.geometry(cfg, 64, 96)
        return
    assert family.size_divisibility(cfg) == 32
    with torch.no_grad():
        outputs = family.run(random_detector(cfg, seed=0).eval(), random_batch([(60, 90)]))
    assert list(family.geometry(cfg, 64, 96).level_sizes) == outputs.level_sizes


def test_the_neck_is_what_lies_between_the_network_and_the_pyramid(configured: Configured) -> None:
    backbone = build_backbone(configured(model("mobilenet_v2")))
    neck = neck_of(backbone)
    ours, whole = neck.state_dict(keep_vars=True), backbone.state_dict(keep_vars=True)
    assert {name for name in whole if not name.startswith("bottom_up.")} == ours.keys()
    assert all(whole[name] is tensor for name, tensor in ours.items())
    assert not neck_of(backbone.bottom_up)
    assert set(neck_of(_simple(_Padded)(None, None))) == {"simfp_3", "simfp_4", "simfp_5"}
