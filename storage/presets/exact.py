"""Preset `exact`: everything as computed, for parity tests and small sets.

Shape letters: n records, C channels, K classes, S positions of all levels, R anchors an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from storage.presets.base import DecodedOutputs, Preset, RawOutputs, to_half
from storage.schema import Field, Geometry

DTYPES = ("float32", "float16")


@dataclass(frozen=True, kw_only=True)
class Exact(Preset):
    """Dense features, logits and deltas.

    Attributes:
        dtype: "float32", or "float16" for half the size.
    """

    name: ClassVar[str] = "exact"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"preset exact: dtype {self.dtype!r}, expected one of {DTYPES}")

    @property
    def parameters(self) -> dict[str, Any]:
        return {"dtype": self.dtype}

    def fields(self, geometry: Geometry) -> list[Field]:
        num_boxes = geometry.num_boxes
        return [
            Field(
                "features", (geometry.channels, geometry.num_positions), self.dtype,
                attributes={"meaning": "pyramid features", "positions": "level, H, W"},
            ),
            Field(
                "logits", (num_boxes, geometry.num_classes), self.dtype,
                attributes={
                    "meaning": "class scores before the sigmoid",
                    "anchors": "level, H, W, A",
                },
            ),
            Field(
                "deltas", (num_boxes, 4), self.dtype,
                attributes={"meaning": "dx, dy, dw, dh", "anchors": "level, H, W, A"},
            ),
        ]  # fmt: skip

    def _encode(self, raw: RawOutputs, geometry: Geometry) -> dict[str, Tensor]:
        tensors = {"features": raw.features, "logits": raw.logits, "deltas": raw.deltas}
        if self.dtype == "float16":
            remedy = "set CACHE.DTYPE float32"
            return {name: to_half(one, name, remedy) for name, one in tensors.items()}
        # A copy even where nothing is converted: detectors change their outputs in place.
        return {name: one.to(torch.float32, copy=True) for name, one in tensors.items()}

    def _decode(self, codes: Mapping[str, Tensor], geometry: Geometry) -> DecodedOutputs:
        return DecodedOutputs(
            features=codes["features"].float(),
            probabilities=_sigmoid_of_each(codes["logits"].float()),
            deltas=codes["deltas"].float(),
        )


def _sigmoid_of_each(logits: Tensor) -> Tensor:
    """Probabilities (n, R, K) float32, each record's the same bits whatever the others are.

    A vectorised kernel rounds the last few values of what it is given in another way than the
    rest, so over all records at once some values would depend on a record's place among them.
    """
    probabilities = torch.empty_like(logits, memory_format=torch.contiguous_format)
    for one, result in zip(logits.contiguous(), probabilities, strict=True):
        torch.sigmoid(one, out=result)
    return probabilities


PRESET = Exact
