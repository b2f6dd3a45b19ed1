"""detectron2's ViT from a module of the user's, which IMPORTS names."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage
from torch import Tensor, nn

from detectors import family_of
from tests.tiny import DETECTOR, random_batch, random_detector, write_config

MODULE = """
from detectron2.modeling import BACKBONE_REGISTRY
from detectron2.modeling.backbone import SimpleFeaturePyramid, ViT
from detectron2.modeling.backbone.fpn import LastLevelMaxPool


class PaddedPyramid(SimpleFeaturePyramid):
    @property
    def size_divisibility(self):
        return self._size_divisibility


@BACKBONE_REGISTRY.register()
def build_users_vit(cfg, input_shape):
    vit = ViT(
        img_size=64,
        patch_size=16,
        embed_dim=16,
        depth=2,
        num_heads=2,
        window_size=2,
        window_block_indexes=(0,),
        pretrain_img_size=64,
        use_rel_pos=True,
    )
    return PaddedPyramid(
        vit, "last_feat", cfg.MODEL.FPN.OUT_CHANNELS, (2.0, 1.0, 0.5), LastLevelMaxPool()
    )
"""


class _Mlp(nn.Sequential):
    def __init__(self, in_features: int, hidden_features: int, act_layer: Any) -> None:
        wide = nn.Linear(in_features, hidden_features)
        super().__init__(wide, act_layer(), nn.Linear(hidden_features, in_features))


@pytest.fixture
def timm(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ViT's blocks import of timm; where that is not installed, two layers like its own."""
    if find_spec("timm") is None:
        layers = SimpleNamespace(DropPath=nn.Dropout, Mlp=_Mlp)
        for name in ("timm", "timm.models"):
            monkeypatch.setitem(sys.modules, name, ModuleType(name))
        monkeypatch.setitem(sys.modules, "timm.models.layers", layers)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:Importing from timm")
@pytest.mark.usefixtures("timm")
def test_a_vit_of_the_user_s_is_padded_and_trains_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "users_vit.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    node = {**DETECTOR["MODEL"], "BACKBONE": {"NAME": "build_users_vit"}}
    node["RETINANET"] = {**node["RETINANET"], "IN_FEATURES": ["p3", "p4", "p5", "p6"]}
    node["ANCHOR_GENERATOR"] = {**node["ANCHOR_GENERATOR"], "SIZES": [[8], [16], [32], [64]]}
    content = {**DETECTOR, "IMPORTS": ["users_vit"], "MODEL": node}
    cfg = write_config(tmp_path / "detector.yaml", content)
    family = family_of(cfg)
    assert family.size_divisibility(cfg) == 32
    detector = random_detector(cfg, seed=0)
    batch = random_batch([(60, 90), (40, 70)])

    outputs = family.run(detector, batch)
    assert list(family.geometry(cfg, 64, 96).level_sizes) == outputs.level_sizes
    with EventStorage():
        losses = family.training_step(
            detector, outputs, [item["instances"] for item in batch]
        ).losses()
    total: Tensor = torch.stack(list(losses.values())).sum()
    total.backward()
    assert torch.isfinite(total)
    assert all(one.grad is not None for one in detector.backbone.net.parameters())
    neck = family.neck(detector).state_dict()
    assert neck and not any(name.startswith("net.") for name in neck)
