"""torchvision's MobileNetV2 as a backbone; its weights keep their names, `features.N...`.

The last 1x1 convolution, which feeds torchvision's classifier alone, is left out.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import FrozenBatchNorm2d, ShapeSpec, get_norm
from detectron2.modeling import Backbone
from torch import Tensor, nn
from torchvision.models import mobilenet_v2
from torchvision.models.mobilenetv2 import InvertedResidual

# The last block at each stride, among torchvision's `features`; c2 ends the first stage.
_LAST_BLOCKS = {"c2": 3, "c3": 6, "c4": 13, "c5": 17}
_STRIDES = {name: 4 << number for number, name in enumerate(_LAST_BLOCKS)}
# The stem, of stride 2.
_LAST_OF_STEM = 1
# All numbers of channels are multiples of it; 32, as detectron2 has, does not divide them.
_GROUPS = 8


class MobileNetV2(Backbone):
    """MobileNetV2 (Sandler et al., CVPR 2018) from torchvision, taken apart at its strides."""

    def __init__(
        self, *, out_features: list[str], norm: str, width: float = 1.0, freeze_at: int = 0
    ) -> None:
        """Args:

        out_features: some of c2, c3, c4, c5; what lies behind the coarsest of them is left out.
        norm: FrozenBN, BN, SyncBN or GN.
        width: factor of all numbers of channels.
        freeze_at: how many stages keep their weights and statistics: 1 is the stem, 2 up to c2.
        """
        super().__init__()
        blocks = mobilenet_v2(width_mult=width, norm_layer=lambda c: _norm(norm, c)).features
        last = max(_LAST_BLOCKS[name] for name in out_features)
        self.features = nn.Sequential(*list(blocks)[: last + 1])
        self._names = {_LAST_BLOCKS[name]: name for name in out_features}
        self._out_features = [name for name in _LAST_BLOCKS if name in out_features]
        self._out_feature_strides = {name: _STRIDES[name] for name in self._out_features}
        self._out_feature_channels = {
            name: self._channels_of(_LAST_BLOCKS[name]) for name in self._out_features
        }
        self._freeze(freeze_at)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Maps by name, of images (N, 3, H, W)."""
        found, values = {}, images
        for number, block in enumerate(self.features):
            values = block(values)
            if number in self._names:
                found[self._names[number]] = values
        return found

    def _channels_of(self, number: int) -> int:
        block = self.features[number]
        assert isinstance(block, InvertedResidual)
        return block.out_channels

    def _freeze(self, stages: int) -> None:
        """As detectron2 freezes ResNet: weights without gradients, and frozen batch norm."""
        ends = [_LAST_OF_STEM, *_LAST_BLOCKS.values()][:stages]
        for number in range(min(len(self.features), ends[-1] + 1) if ends else 0):
            block = self.features[number]
            for parameter in block.parameters():
                parameter.requires_grad = False
            FrozenBatchNorm2d.convert_frozen_batchnorm(block)


def build_mobilenet_v2(cfg: CfgNode, _input_shape: ShapeSpec) -> MobileNetV2:
    """Build from the node MODEL.MOBILENET_V2."""
    node = cfg.MODEL.MOBILENET_V2
    return MobileNetV2(
        out_features=node.OUT_FEATURES,
        norm=node.NORM,
        width=node.WIDTH,
        freeze_at=cfg.MODEL.BACKBONE.FREEZE_AT,
    )


def _norm(name: str, channels: int) -> Any:
    return nn.GroupNorm(_GROUPS, channels) if name == "GN" else get_norm(name, channels)
