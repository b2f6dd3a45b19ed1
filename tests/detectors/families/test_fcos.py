"""FCOS by YAML is detectron2's lazily configured FCOS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import detectron2
import pytest
import torch
from detectron2.config import CfgNode, LazyConfig, instantiate
from detectron2.modeling import build_model
from detectron2.utils.events import EventStorage
from torch import nn

from configs.loader import load_config
from detectors.families.fcos import FcosFamily
from tests.tiny import DETECTOR, FCOS, random_batch, random_detector, write_config

ROOT = Path(__file__).resolve().parents[3]
ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"
SIZES = [(64, 90), (96, 64)]


@pytest.fixture
def cfg(tmp_path: Path) -> CfgNode:
    model = {**DETECTOR["MODEL"], **FCOS}
    return write_config(tmp_path / "fcos.yaml", {**DETECTOR, "MODEL": model})


def settings_of(model: nn.Module) -> dict[str, Any]:
    """What a detector was made with besides its modules."""
    return {k: v for k, v in vars(model).items() if isinstance(v, int | float)}


def frozen(model: nn.Module) -> list[str]:
    return [name for name, weight in model.named_parameters() if not weight.requires_grad]


def test_the_base_config_is_detectron2_s_lazy_one() -> None:
    lazy = LazyConfig.load(str(ZOO / "COCO-Detection/fcos_R_50_FPN_1x.py")).model
    stock = instantiate(lazy).eval()
    cfg = load_config(str(ROOT / "configs/base_fcos.yaml"), ["MODEL.DEVICE", "cpu"])
    torch.manual_seed(0)
    ours = build_model(cfg).eval()
    assert settings_of(ours) == settings_of(stock)
    frozen = [
        [name for name, p in m.named_parameters() if not p.requires_grad] for m in (ours, stock)
    ]
    assert frozen[0] == frozen[1]
    assert torch.equal(ours.pixel_mean, stock.pixel_mean)
    assert torch.equal(ours.pixel_std, stock.pixel_std)
    torch.nn.init.constant_(ours.head.bbox_pred.bias, 2.0)  # else most distances are negative
    stock.load_state_dict(ours.state_dict(), strict=True)
    with EventStorage():
        losses = [model.train()(random_batch(SIZES)) for model in (ours, stock)]
    assert losses[0] == losses[1]
    # Untrained, nothing reaches a score of 0.2.
    for model in (ours.eval(), stock.eval()):
        model.test_score_thresh = 0.0
    with torch.no_grad():
        mine, theirs = (model(random_batch(SIZES[:1]))[0]["instances"] for model in (ours, stock))
    assert len(mine) > 0 and torch.equal(mine.pred_boxes.tensor, theirs.pred_boxes.tensor)
    assert torch.equal(mine.scores, theirs.scores)
    assert torch.equal(mine.pred_classes, theirs.pred_classes)


def test_places_and_centerness_follow_the_levels_that_are_kept(cfg: CfgNode) -> None:
    family, model = FcosFamily(), random_detector(cfg, seed=2).eval()
    with torch.no_grad():
        outputs = family.run(model, random_batch(SIZES))
    kept = outputs.on_levels([1, 3])
    levels = outputs.centerness.split(outputs.anchors_per_level, dim=1)
    assert torch.equal(kept.centerness, torch.cat([levels[1], levels[3]], dim=1))
    assert kept.signals()["centerness"] is kept.centerness
    assert kept.logits.shape[1] == kept.centerness.shape[1] == len(kept.anchors)


def test_a_negative_distance_is_none_where_boxes_are_compared() -> None:
    family, deltas = FcosFamily(), torch.tensor([[-1.0, 0.5, -0.2, 2.0]])
    comparable = family.comparable_deltas(deltas)
    assert comparable.tolist() == [[0.0, 0.5, 0.0, 2.0]]


def test_global_counts_on_one_rank_are_the_rank_s_own(cfg: CfgNode) -> None:
    family, batch = FcosFamily(), random_batch(SIZES)
    found = []
    for together in (False, True):
        model = random_detector(cfg, seed=1).train()
        with EventStorage():
            for _ in range(2):
                step = family.training_step(
                    model,
                    family.run(model, batch),
                    [item["instances"] for item in batch],
                    global_counts=together,
                )
                losses = step.losses()
        found.append((losses, model.loss_normalizer))
    (own, average), (ours, our_average) = found
    assert our_average == pytest.approx(average) and average < 300
    for name, loss in own.items():
        torch.testing.assert_close(ours[name], loss)


def test_a_place_that_a_class_s_own_rule_leaves_out_is_not_positive(
    cfg: CfgNode, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, model = FcosFamily(), random_detector(cfg, seed=1).train()
    stock = model.label_anchors

    def without_objects(*args: Any) -> Any:
        labels, boxes = stock(*args)
        return [one.where(one == model.num_classes, -1) for one in labels], boxes

    batch = random_batch(SIZES)
    outputs, targets = family.run(model, batch), [item["instances"] for item in batch]
    assert family.training_step(model, outputs, targets).positive.any()
    monkeypatch.setattr(model, "label_anchors", without_objects)
    assert not family.training_step(model, outputs, targets).positive.any()
