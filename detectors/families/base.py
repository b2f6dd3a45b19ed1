"""What distillation asks of a detector: the questions that a family answers.

A *family* knows one kind of detectron2 model: how to take it apart, what its training says of the
places of its head, and what of its config decides its outputs. It answers; it hands out no part of
the model that others would have to know. It holds no weights, so that one family serves teacher and
student.

Shape letters: N images, K classes, R places of an image (anchors or positions, all levels),
G boxes of an image, D rows for final boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, runtime_checkable

from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor, nn

from storage import Geometry, Signal

from .outputs import DenseOutputs


class BoxTransform(Protocol):
    """What detectron2's Box2BoxTransform and Box2BoxTransformLinear have in common."""

    def apply_deltas(self, deltas: Tensor, boxes: Tensor) -> Tensor:
        """Decode (P, 4) deltas at (P, 4) anchors into (P, 4) boxes."""


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """What a detector's own training says of a batch.

    Attributes:
        positive: (N, R) bool, the places assigned to an object.
        losses: computes them by name, exactly as stock training has them; to be called once, since
            it moves the detector's running averages. They are apart from the labels because a GPU
            is waited for in between: who looks at the labels first has its own work launched before
            the losses, and reads it back while they are computed.
    """

    positive: Tensor
    losses: Callable[[], dict[str, Tensor]]


class DetectorFamily(Protocol):
    """One kind of detector. Every method is a function of its arguments alone."""

    # Under this name it is registered, and `MODEL.FAMILY` finds it.
    name: str
    # The class of its models; a meta-architecture that derives from it is of this family too.
    architecture: type[nn.Module]
    # Methods of that class which this family goes around: a model with its own would be distilled
    # as if it had none.
    replaced: tuple[str, ...]
    # The config key that holds the number of classes, such as MODEL.RETINANET.NUM_CLASSES.
    num_classes_key: str
    # Layers of `head` that tell classes apart, to the rows of each class for a place.
    class_layers: ClassVar[Mapping[str, int]]

    def size_divisibility(self, cfg: CfgNode) -> int:
        """The number of pixels to a multiple of which views are padded."""
        ...

    def levels(self, cfg: CfgNode) -> dict[str, int]:
        """Name of every level, finest first, to its stride: pixels per position."""
        ...

    def pooled_levels(self, cfg: CfgNode) -> tuple[str, ...]:
        """Names of the levels that features of boxes are pooled from."""
        ...

    def signals(self, cfg: CfgNode) -> tuple[Signal, ...]:
        """What a record holds of such a detector; the names are those of `DenseOutputs.signals`."""
        ...

    def channels(self, cfg: CfgNode) -> int:
        """Channels of every level of the pyramid."""
        ...

    def geometry(self, cfg: CfgNode, height: int, width: int) -> Geometry:
        """Array sizes for views padded to `height` x `width` pixels; builds no model."""
        ...

    def identity(self, cfg: CfgNode) -> dict[str, Any]:
        """The part of the config that changes what the model computes."""
        ...

    def pairing(self, cfg: CfgNode) -> dict[str, dict[str, Any]]:
        """What a teacher and a student must share for a method to compare them.

        By signal, or `detections`: fact to value; of `features` nothing, any two pyramids have
        levels of one stride.
        """
        ...

    def lazy_config(self, cfg: CfgNode) -> str:
        """Text of a LazyConfig file that builds the model; "" where detectron2 reads its YAML."""
        ...

    def run(self, model: nn.Module, batch: list[dict[str, Any]]) -> DenseOutputs:
        """Normalise and pad detectron2 inputs as the model itself does; run backbone and head."""
        ...

    def training_step(
        self,
        model: nn.Module,
        outputs: DenseOutputs,
        targets: list[Instances],
        *,
        global_counts: bool = False,
    ) -> TrainingStep:
        """Assign ground truth to places, and prepare the detector's own losses.

        With `global_counts` these are normalised by what all ranks count together, so that their
        mean over the ranks is the loss of all images; every rank must compute them.
        """
        ...

    def assign_boxes(
        self, model: nn.Module, outputs: DenseOutputs, boxes: Tensor, valid: Tensor, usable: Tensor
    ) -> Tensor:
        """Find the places that the model's training would assign to given boxes.

        Nothing is read back to the host.

        Args:
            model, outputs: of the batch.
            boxes: (N, G, 4) XYXY_ABS, pixels of the view.
            valid: (N, G) bool, whether there is a box.
            usable: (N, R) bool, whether a place takes part.

        Returns:
            (N, R) bool.
        """
        ...

    def detections(self, model: nn.Module, outputs: DenseOutputs, rows: int) -> Tensor:
        """Final boxes of a batch, those of stock inference.

        Args:
            model, outputs: of the batch; not modified.
            rows: D, of an image.

        Returns:
            (N, D, 6) float32: x1 y1 x2 y2 score class, XYXY_ABS, pixels of the view, best first;
            unused rows are zeros with score -1 and class -1, see `pack_detections`.
        """
        ...

    def box_transform(self, model: nn.Module) -> BoxTransform:
        """What turns deltas into boxes."""
        ...

    def comparable_deltas(self, deltas: Tensor) -> Tensor:
        """Deltas (A, 4) of some places as the response loss compares them."""
        ...

    def head(self, model: nn.Module) -> nn.Module:
        """The part behind the pyramid, which depends on channels and classes alone."""
        ...

    def neck(self, model: nn.Module) -> nn.Module:
        """The part that makes the pyramid of what the backbone's network gives; may be empty.

        It shares its tensors with the model; `detectors.backbones.neck_of` finds it.
        """
        ...


@runtime_checkable
class TwoStageFamily(DetectorFamily, Protocol):
    """A family whose detectors look at proposals again, with a box head.

    Its records have three signals more: `proposals` (P, 4) XYXY_ABS, pixels of the view, best
    first, of which rows without an area are not used; `proposal_scores` (P, K + 1), the box head's
    logits, background last; `proposal_deltas` (P, 4), its deltas of the best of the K classes.
    """

    def box_head_outputs(
        self, model: nn.Module, outputs: DenseOutputs, boxes: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What the box head says of given boxes, whichever levels `outputs` was reduced to.

        Args:
            model, outputs: of the batch.
            boxes: (N, P, 4) XYXY_ABS, pixels of the view; they may be empty.

        Returns:
            Logits (N, P, K + 1), and deltas (N, P, K, 4) relative to the boxes.
        """
        ...
