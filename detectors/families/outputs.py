"""What a dense detector says of a batch, in the one form that both stages use.

Shape letters: N images, K classes, A anchors per position, R anchors of an image (all levels),
C channels, L levels. Anchors are in the order level, H, W, A.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import torch
from detectron2.structures import Boxes
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class DenseOutputs:
    """Pyramid and head outputs of a batch, before any threshold.

    Attributes:
        features: L maps, each (N, C, H_l, W_l).
        logits: (N, R, K) class logits.
        deltas: (N, R, 4) box regression relative to the anchors, unitless.
        anchors: (R, 4) XYXY_ABS, pixels of the padded view.
        anchors_per_level: L counts that add up to R.
        image_sizes: N pairs (height, width) in pixels, without the padding.
    """

    features: list[Tensor]
    logits: Tensor
    deltas: Tensor
    anchors: Tensor
    anchors_per_level: list[int]
    image_sizes: list[tuple[int, int]]

    @property
    def level_sizes(self) -> list[tuple[int, int]]:
        """Height and width of every level's grid, in positions."""
        return [(int(f.shape[-2]), int(f.shape[-1])) for f in self.features]

    @property
    def level_anchors(self) -> list[Boxes]:
        """The anchors as detectron2's own parts take them: L times (R_l, 4)."""
        return [Boxes(level) for level in self.anchors.split(self.anchors_per_level)]

    def by_level(self, values: Tensor) -> list[Tensor]:
        """View (N, R, ...) values as those of each level."""
        return list(values.split(self.anchors_per_level, dim=1))

    def signals(self) -> dict[str, Tensor]:
        """The same outputs as a cache takes them: signal name to values, levels side by side."""
        flat = torch.cat([f.flatten(2) for f in self.features], dim=2)  # (N, C, S)
        return {"features": flat, "scores": self.logits, "deltas": self.deltas}

    def centres(self) -> Tensor | None:
        """Logits (N, R, 1) of what detections are ranked by beside their class; None: nothing."""
        return None

    def float(self) -> Self:
        """The same in float32, which holds every bfloat16 and float16 exactly."""
        return replace(self, **{f.name: _float(getattr(self, f.name)) for f in fields(self)})

    def on_levels(self, kept: Sequence[int]) -> Self:
        """The outputs of some levels alone, which are in the order of theirs."""
        return replace(
            self,
            features=[self.features[level] for level in kept],
            logits=self.places_on(kept, self.logits),
            deltas=self.places_on(kept, self.deltas),
            anchors=self.places_on(kept, self.anchors[None])[0],
            anchors_per_level=[self.anchors_per_level[level] for level in kept],
        )

    def first(self, count: int) -> Self:
        """The outputs of the first images alone."""
        return replace(
            self,
            features=[one[:count] for one in self.features],
            logits=self.logits[:count],
            deltas=self.deltas[:count],
            image_sizes=self.image_sizes[:count],
        )

    def places_on(self, kept: Sequence[int], values: Tensor) -> Tensor:
        """Of (N, R, ...) values, those of some levels alone."""
        if list(kept) == list(range(len(self.features))):
            return values
        of_levels = self.by_level(values)
        # Of no level, too: a method may ask for nothing that lies on one.
        return torch.cat([values[:, :0], *(of_levels[level] for level in kept)], dim=1)


def _float(value: Any) -> Any:
    """A tensor in float32, or a list with its tensors so; all else as it is."""
    if isinstance(value, list):
        return [_float(one) for one in value]
    return value.float() if isinstance(value, Tensor) else value
