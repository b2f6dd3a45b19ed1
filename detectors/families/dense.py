"""What families of one dense head on a pyramid answer alike: RetinaNet, FCOS.

Shape letters: N images, R places of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import build_backbone
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from detectron2.utils import comm
from torch import Tensor, nn

from configs.stock_limits import value_of
from storage import Geometry

from ..backbones import backbone_identity, neck_of, padding_of
from ..ranks import mean_over_ranks
from .base import BoxTransform
from .outputs import DenseOutputs


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the backbone and the head of a config say of themselves.

    Attributes:
        strides: pixels per position, for every level of the head.
        channels: of every level.
        num_anchors: per position.
        size_divisibility: the model pads images to multiples of this, pixels.
    """

    strides: tuple[int, ...]
    channels: int
    num_anchors: int
    size_divisibility: int


def build_layout(
    cfg: CfgNode, in_features: list[str], num_anchors: Callable[[list[ShapeSpec]], int]
) -> Layout:
    """Build the backbone of a config and ask it; for use under `of_the_model`.

    Args:
        cfg: of a detector.
        in_features: names of the levels of its head.
        num_anchors: gives the anchors per position for the shapes of these levels.
    """
    backbone = build_backbone(cfg)
    shapes = backbone.output_shape()
    levels = [shapes[name] for name in in_features]
    return Layout(
        strides=tuple(level.stride for level in levels),
        channels=levels[0].channels,
        num_anchors=num_anchors(levels),
        size_divisibility=padding_of(backbone),
    )


class DenseFamily:
    """Answers from the layout of a config and from the nodes of its heads."""

    # Of the head whose places are cached, below MODEL: its IN_FEATURES are the levels.
    node: str
    # See `DetectorFamily`.
    num_classes_key: str
    class_layers: ClassVar[Mapping[str, int]] = {}
    # The nodes that the heads read, and those of their settings that act in training alone: two
    # teachers that differ in them, but not in their weights, compute the same outputs.
    training_only: ClassVar[Mapping[str, tuple[str, ...]]]
    # The methods `losses` that are known to join the levels, whose order alone matters to them.
    joining_losses: ClassVar[tuple[Callable[..., Any], ...]] = ()

    def layout(self, cfg: CfgNode) -> Layout:
        """What the parts of the model say of themselves; built once a config."""
        raise NotImplementedError

    def size_divisibility(self, cfg: CfgNode) -> int:
        """See `DetectorFamily`."""
        return self.layout(cfg).size_divisibility

    def levels(self, cfg: CfgNode) -> dict[str, int]:
        """See `DetectorFamily`."""
        names = cfg.MODEL[self.node].IN_FEATURES
        return dict(zip(names, self.layout(cfg).strides, strict=True))

    def pooled_levels(self, cfg: CfgNode) -> tuple[str, ...]:
        """See `DetectorFamily`."""
        return tuple(self.levels(cfg))

    def channels(self, cfg: CfgNode) -> int:
        """See `DetectorFamily`."""
        return self.layout(cfg).channels

    def same_classes(self, cfg: CfgNode) -> dict[str, Any]:
        """Of `pairing`: what makes a class number mean the same in two detectors."""
        return {"number of classes": value_of(cfg, self.num_classes_key)}

    def same_places(self, cfg: CfgNode) -> dict[str, Any]:
        """Of `pairing`: what makes places correspond, but for the anchors themselves."""
        layout = self.layout(cfg)
        return {
            "strides of the levels": layout.strides,
            "anchors per position": layout.num_anchors,
        }

    def same_anchors(self, cfg: CfgNode) -> dict[str, Any]:
        """Of `pairing`: `same_places`, and the anchors there."""
        generator = cfg.MODEL.ANCHOR_GENERATOR.items()
        return {
            **self.same_places(cfg),
            **{f"MODEL.ANCHOR_GENERATOR.{key}": value for key, value in generator},
        }

    def geometry(self, cfg: CfgNode, height: int, width: int) -> Geometry:
        """See `DetectorFamily`."""
        strides = self.layout(cfg).strides
        # Every level halves the one below and rounds up: a 3x3 convolution of stride 2 with a
        # padding of 1 does, and so does taking every second position from the first on.
        return Geometry(height, width, tuple((-(-height // s), -(-width // s)) for s in strides))

    def identity(self, cfg: CfgNode) -> dict[str, Any]:
        """See `DetectorFamily`."""
        model = cfg.MODEL
        heads = {
            node: {key: value for key, value in model[node].items() if key not in left_out}
            for node, left_out in self.training_only.items()
        }
        return {
            "INPUT": {"FORMAT": cfg.INPUT.FORMAT},
            "MODEL": {
                "META_ARCHITECTURE": model.META_ARCHITECTURE,
                **backbone_identity(cfg),
                "PIXEL_MEAN": list(model.PIXEL_MEAN),
                "PIXEL_STD": list(model.PIXEL_STD),
                **heads,
            },
            "TEST": {"DETECTIONS_PER_IMAGE": cfg.TEST.DETECTIONS_PER_IMAGE},
        }

    def lazy_config(self, cfg: CfgNode) -> str:
        """See `DetectorFamily`."""
        return ""

    def for_losses(
        self, model: DenseDetector, outputs: DenseOutputs, values: Tensor
    ) -> list[Tensor]:
        """List (N, R, ...) values as the model's own `losses` takes them, which is by level.

        To one that joins the levels, one entry for all of them gives the same sums without a second
        copy of the logits.
        """
        joins = type(model).losses in self.joining_losses
        return [values] if joins else outputs.by_level(values)

    def box_transform(self, model: DenseDetector) -> BoxTransform:
        """See `DetectorFamily`."""
        transform: BoxTransform = model.box2box_transform
        return transform

    def comparable_deltas(self, deltas: Tensor) -> Tensor:
        """See `DetectorFamily`."""
        return deltas

    def head(self, model: DenseDetector) -> nn.Module:
        """See `DetectorFamily`."""
        head: nn.Module = model.head
        return head

    def neck(self, model: DenseDetector) -> nn.Module:
        """See `DetectorFamily`."""
        return neck_of(model.backbone)


def losses_by_global_counts(
    model: DenseDetector,
    losses: Callable[[], dict[str, Tensor]],
    positive: Tensor,
    initial: int,
) -> dict[str, Tensor]:
    """Losses whose normaliser is updated with the positive places of all ranks.

    Args:
        model: holds the normaliser, a running average.
        losses: its own, normalised by this rank's positives.
        positive: (N, R) bool.
        initial: where detectron2 begins the average.
    """
    average = getattr(model, "loss_normalizer", initial)
    found = losses()
    own = model.loss_normalizer
    ranks = comm.get_world_size()
    total = mean_over_ranks(positive.sum().float()).item() * ranks
    model.loss_normalizer = average
    together = model._ema_update("loss_normalizer", max(total, 1), initial)
    return {name: loss * (own * ranks / together) for name, loss in found.items()}
