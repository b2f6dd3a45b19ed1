"""Files of classifiers' weights, as torchvision writes them, begin the training of a detector."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn
from torchvision.models import mobilenet_v2
from torchvision.models.resnet import BasicBlock, ResNet

from detectors.building import build_detector
from detectors.checkpoint import SafeCheckpointer
from tests.detectors.backbones.cases import model
from tests.tiny import DETECTOR, write_config

RESNETS = {
    **DETECTOR["MODEL"]["RESNETS"],
    "DEPTH": 18,
    "RES2_OUT_CHANNELS": 64,
    "STEM_OUT_CHANNELS": 64,
    "NORM": "FrozenBN",
}


def configured(folder: Path, **node: object) -> CfgNode:
    content = {**DETECTOR, "MODEL": {**DETECTOR["MODEL"], **node}}
    return write_config(folder / "detector.yaml", content)


def saved(net: nn.Module, path: Path) -> str:
    """Give its statistics values of their own, and write it as torchvision does."""
    torch.manual_seed(1)
    for name, tensor in net.state_dict().items():
        if "running_" in name:
            tensor.uniform_(0.5, 1.5)
    torch.save(net.eval().state_dict(), path)
    return str(path)


@pytest.mark.parametrize("norm", ["FrozenBN", "BN"])
def test_torchvision_s_mobilenet_v2_is_taken_whole_and_the_rest_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, norm: str
) -> None:
    theirs = mobilenet_v2(width_mult=0.1)
    path = saved(theirs, tmp_path / "a.pth")
    detector = build_detector(configured(tmp_path, **model("mobilenet_v2", NORM=norm)))
    with caplog.at_level("INFO"):
        SafeCheckpointer(detector).load(path, checkpointables=[])
    (line,) = [text for text in caplog.messages if text.startswith("took ")]
    assert line.startswith("took 306 of 313" if norm == "BN" else "took 255 of 262 tensors")
    assert line.endswith("left out: features.18 (5), classifier.1 (2)")
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        found = detector.eval().backbone.bottom_up(images)
        assert torch.equal(found["c5"], theirs.features[:18](images))


def test_torchvision_s_resnet_is_taken_by_detectron2_s_names(tmp_path: Path) -> None:
    theirs = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=3)
    path = saved(theirs, tmp_path / "a.pth")
    detector = build_detector(configured(tmp_path, RESNETS=RESNETS))
    SafeCheckpointer(detector).load(path, checkpointables=[])
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        values = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
        for stage in (theirs.layer1, theirs.layer2, theirs.layer3, theirs.layer4):
            values = stage(values)
        found = detector.eval().backbone.bottom_up(images)
    torch.testing.assert_close(found["res5"], values)


def test_a_network_of_another_width_is_refused(tmp_path: Path) -> None:
    path = saved(mobilenet_v2(width_mult=0.5), tmp_path / "a.pth")
    detector = build_detector(configured(tmp_path, **model("mobilenet_v2")))
    with pytest.raises(
        ValueError, match=r"a\.pth: .*another size.* has shape \(16, 3, 3, 3\), not"
    ):
        SafeCheckpointer(detector).load(path, checkpointables=[])


def test_a_classifier_never_passes_for_a_trained_detector(tmp_path: Path) -> None:
    path = saved(mobilenet_v2(width_mult=0.1), tmp_path / "a.pth")
    detector = build_detector(configured(tmp_path, **model("mobilenet_v2")))
    with pytest.raises(ValueError, match="none of its 314 weights fits the model"):
        SafeCheckpointer(detector, strict=True).load(path)
