"""Dense codecs: every value as computed, in 32 or 16 bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from storage.codecs.base import Codec, Codes, PlacedCodec, of_all, sigmoid
from storage.codecs.placing import Placing
from storage.schema import Field, Geometry
from storage.signals import Signal

DTYPES = ("float32", "float16")
_MEANINGS = {
    "maps": {"meaning": "pyramid features", "positions": "level, H, W"},
    "scores": {"meaning": "class scores before the sigmoid", "anchors": "level, H, W, A"},
    "deltas": {"meaning": "box regression of the detector", "anchors": "level, H, W, A"},
    "boxes": {"meaning": "x1, y1, x2, y2, pixels of the view"},
}


@dataclass(frozen=True, kw_only=True)
class Dense(PlacedCodec):
    """Values of any kind but scores.

    Attributes:
        dtype: "float32", or "float16" for half the size.
    """

    name: ClassVar[str] = "dense"
    kinds: ClassVar[tuple[str, ...]] = ("maps", "deltas", "boxes", "rows")
    holds_values: ClassVar[bool] = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise ValueError(f"codec {self.name}: dtype {self.dtype!r}, expected one of {DTYPES}")

    def fields(self, signal: Signal, geometry: Geometry) -> list[Field]:
        attributes = _MEANINGS.get(signal.kind, {})
        return [Field("values", signal.shape(geometry), self.dtype, attributes)]

    def encode(self, values: Tensor, signal: Signal, geometry: Geometry) -> dict[str, Tensor]:
        # A copy even where nothing is converted: detectors change their outputs in place.
        return {"values": values.to(getattr(torch, self.dtype), copy=True)}

    def place(self, records: Sequence[Codes], signal: Signal, placing: Placing) -> Codes:
        return {"values": placing.values(of_all(records, "values"), signal)}

    def decode_unpacked(self, codes: Codes, signal: Signal, geometry: Geometry) -> Tensor:
        return codes["values"].float()


@dataclass(frozen=True, kw_only=True)
class DenseScores(Dense):
    """Logits of every anchor and class."""

    name: ClassVar[str] = "dense_scores"
    kinds: ClassVar[tuple[str, ...]] = ("scores",)

    def decode_placed(self, records: Sequence[Codes], signal: Signal, placing: Placing) -> Tensor:
        # A logit of zero, beyond a record's own grid, would be a probability of a half.
        return Codec.decode_placed(self, records, signal, placing)

    def decode_unpacked(self, codes: Codes, signal: Signal, geometry: Geometry) -> Tensor:
        return sigmoid(codes["values"])
