"""What a user's module may register: detectors that derive from a supported one."""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch.retinanet import RetinaNet, RetinaNetHead
from torch import Tensor, nn


class DeeperHead(RetinaNetHead):
    """One more convolution, with group norm, before both branches."""

    def __init__(self, cfg: CfgNode, input_shape: list[Any]) -> None:
        super().__init__(cfg, input_shape)
        channels = input_shape[0].channels
        self.shared = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1), nn.GroupNorm(2, channels), nn.ReLU()
        )

    def forward(self, features: list[Tensor]) -> Any:
        """As the stock head, of what the convolution gives."""
        return super().forward([self.shared(level) for level in features])


@META_ARCH_REGISTRY.register()
class DeeperRetinaNet(RetinaNet):
    """With that head, and a loss of its own."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The stock arguments, but for the head."""
        found: dict[str, Any] = super().from_config(cfg)
        shapes = found["backbone"].output_shape()
        found["head"] = DeeperHead(cfg, [shapes[name] for name in found["head_in_features"]])
        return found

    def losses(self, *args: Any) -> dict[str, Tensor]:
        """One more than the stock ones."""
        found: dict[str, Tensor] = super().losses(*args)
        return {**found, "loss_own": 0.5 * found["loss_box_reg"].square()}


class HeldHead(nn.Module):
    """Holds the stock head, so that its layers have longer names."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.held = head

    def forward(self, features: list[Tensor]) -> Any:
        """As the stock head."""
        return self.held(features)


@META_ARCH_REGISTRY.register()
class HeldRetinaNet(RetinaNet):
    """With that head."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        """The stock arguments, but for the head."""
        found: dict[str, Any] = super().from_config(cfg)
        return {**found, "head": HeldHead(found["head"])}


@META_ARCH_REGISTRY.register()
def build_deeper(cfg: CfgNode) -> nn.Module:
    """The same, by a function: its class cannot be told before it is called."""
    return DeeperRetinaNet(cfg)


@META_ARCH_REGISTRY.register()
class OtherwiseTrained(RetinaNet):
    """Takes the forward pass into its own hands."""

    def forward_training(self, *args: Any) -> Any:
        """As if something else."""
        return super().forward_training(*args)
