"""What GID needs of a detector, as an interface, and where a config finds its own.

A *family* knows how to take one kind of detectron2 model apart: pyramid, logits, deltas, anchors,
decoding and assignment. It holds no weights, so that one family serves teacher and student.
"""

from __future__ import annotations

from functools import reduce
from typing import Any, Protocol

from detectron2.config import CfgNode
from detectron2.modeling.box_regression import Box2BoxTransform
from detectron2.modeling.matcher import Matcher
from detectron2.structures import ImageList, Instances
from torch import Tensor, nn

from configs.origins import place_of
from storage import Geometry, Signal

from .outputs import DenseOutputs

# Models of detectron2 that are trained here, but for which no family is written.
_STOCK_CLASSES_KEYS = {"GeneralizedRCNN": "MODEL.ROI_HEADS.NUM_CLASSES"}


class DetectorFamily(Protocol):
    """One kind of detector. Every method is a pure function of its arguments."""

    name: str
    # The config key that holds the number of classes, such as MODEL.RETINANET.NUM_CLASSES.
    num_classes_key: str

    def size_divisibility(self, cfg: CfgNode) -> int:
        """The number of pixels to a multiple of which views are padded."""
        ...

    def levels(self, cfg: CfgNode) -> dict[str, int]:
        """Name of every level, finest first, to its stride: pixels per position."""
        ...

    def signals(self, cfg: CfgNode) -> tuple[Signal, ...]:
        """What a record holds of such a detector; the names are those of its outputs."""
        ...

    def geometry(self, cfg: CfgNode, height: int, width: int) -> Geometry:
        """Grids of all levels for views padded to `height` x `width` pixels; builds no model."""
        ...

    def output_config(self, cfg: CfgNode) -> dict[str, Any]:
        """The part of the config that changes what the model computes."""
        ...

    def preprocess(self, model: nn.Module, batch: list[dict[str, Any]]) -> ImageList:
        """Normalise and pad detectron2 inputs, as the model itself does, on its device."""
        ...

    def run(self, model: nn.Module, images: ImageList) -> DenseOutputs:
        """Run backbone and head on normalised, padded images."""
        ...

    def assign(
        self, model: nn.Module, outputs: DenseOutputs, targets: list[Instances]
    ) -> tuple[Tensor, list[Tensor]]:
        """Ground truth of every anchor.

        Returns:
            (N, R) int64 labels: -1 ignored, 0 to K - 1 a class, K background; and for every
            image the (R, 4) XYXY_ABS boxes matched.
        """
        ...

    def losses(
        self,
        model: nn.Module,
        outputs: DenseOutputs,
        labels: Tensor,
        boxes: list[Tensor],
        *,
        global_counts: bool = False,
    ) -> dict[str, Tensor]:
        """The detector's own losses on what `assign` gave, exactly as stock training has them.

        With `global_counts` they are normalised by what all ranks count together, so that their
        mean over the ranks is the loss of all images; every rank must call this.
        """
        ...

    def detections(self, model: nn.Module, outputs: DenseOutputs) -> list[Instances]:
        """Final boxes in pixels of the view, as stock inference has them; changes nothing."""
        ...

    def head(self, model: nn.Module) -> nn.Module:
        """The part behind the pyramid, which depends on channels and classes alone."""
        ...

    def matcher(self, model: nn.Module) -> Matcher:
        """The matcher that assigns anchors to boxes in training."""
        ...

    def box_transform(self, model: nn.Module) -> Box2BoxTransform:
        """What turns deltas into boxes."""
        ...


def family_of(cfg: CfgNode) -> DetectorFamily:
    """Find the family of a config.

    Raises:
        ValueError: no family is written for this `MODEL.META_ARCHITECTURE`.
    """
    families = _families()
    name = cfg.MODEL.META_ARCHITECTURE
    if name not in families:
        raise ValueError(
            f"{place_of(cfg, 'MODEL.META_ARCHITECTURE')}MODEL.META_ARCHITECTURE is {name!r}; "
            f"distillation supports: {', '.join(families)}"
        )
    return families[name]


def num_classes(cfg: CfgNode) -> tuple[str, int] | None:
    """The key that holds the number of classes, and its value; None where no key is known.

    Plain training takes detectron2's models beyond the families: its R-CNNs are known too.
    """
    name = cfg.MODEL.META_ARCHITECTURE
    family = _families().get(name)
    key = family.num_classes_key if family else _STOCK_CLASSES_KEYS.get(name)
    if key is None:
        return None
    return key, reduce(getattr, key.split("."), cfg)


def _families() -> dict[str, DetectorFamily]:
    from .retinanet import RetinaNetFamily

    return {"RetinaNet": RetinaNetFamily()}
