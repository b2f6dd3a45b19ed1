"""Codec `predicted_deltas`: multiples of 1/128, predicted from their neighbours.

With eight low bits apart from the rest, under Zstandard. The L1 loss turns on the sign of small
differences, so a coarse step would turn gradients round.

Shape letters: n records, A anchors per position, S positions of all levels, R anchors of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from storage.codecs import quantising
from storage.codecs.base import Codes, PlacedCodec, of_all, stacked
from storage.codecs.placing import Placing
from storage.schema import Field, Geometry
from storage.signals import Signal

STEP = 1 / 128
BASE = 256
LIMIT = 8000


@dataclass(frozen=True, kw_only=True)
class PredictedDeltas(PlacedCodec):
    """Entropy-coded deltas."""

    name: ClassVar[str] = "predicted_deltas"
    kinds: ClassVar[tuple[str, ...]] = ("deltas",)
    small: ClassVar[frozenset[str]] = frozenset({"scale"})
    compression: ClassVar[str | None] = "zstd"

    def fields(self, signal: Signal, geometry: Geometry) -> list[Field]:
        shape = 4 * signal.sizes["anchors"], geometry.num_positions
        return [
            Field(
                "low", shape, "int8",
                attributes={
                    "meaning": "low part of what is left of the codes after prediction: left ="
                    f" low + {BASE} * high",
                    "prediction": quantising.PREDICTION,
                    "value": "code * scale",
                    "planes": "A, then the four values of the box regression",
                    "positions": "level, H, W",
                },
            ),
            Field("high", shape, "int8", attributes={"meaning": "see low"}),
            Field(
                "scale", (), "float32",
                attributes={"meaning": "value of code 1 of the deltas", "limits": {"least": 0}},
            ),
        ]  # fmt: skip

    def typical_bytes(self, signal: Signal, geometry: Geometry) -> int | None:
        low, high, _ = (field.num_bytes for field in self.fields(signal, geometry))
        share = quantising.typical_share
        return round(low * share(geometry, 0.5, 0.04) + high * share(geometry, 0.001, 0.001))

    def encode(self, values: Tensor, signal: Signal, geometry: Geometry) -> dict[str, Tensor]:
        shape = len(values), geometry.num_positions, 4 * signal.sizes["anchors"]
        planes = values.float().reshape(shape).mT.contiguous()  # [n, 4A, S]
        # The step only grows for deltas beyond 62, which no box transform of a detector gives.
        scale = (planes.abs().amax(dim=(1, 2)) / LIMIT).clamp(min=STEP)  # [n]
        codes = (planes / scale[:, None, None]).round_().to(torch.int16)
        low, high = quantising.split(quantising.predict(codes, geometry), BASE)
        return {"low": low.to(torch.int8), "high": high.to(torch.int8), "scale": scale}

    def place(self, records: Sequence[Codes], signal: Signal, placing: Placing) -> Codes:
        return {
            "low": placing.positions(of_all(records, "low"), outside=0),
            "high": placing.positions(of_all(records, "high"), outside=0),
            "scale": stacked(records, "scale"),
        }

    def decode_placed(self, records: Sequence[Codes], signal: Signal, placing: Placing) -> Tensor:
        # With nothing left beyond a record, predictions repeat its last row and column there.
        decoded = super().decode_placed(records, signal, placing)
        return decoded.masked_fill_(~placing.valid(signal.sizes["anchors"])[..., None], 0.0)

    def decode_unpacked(self, codes: Codes, signal: Signal, geometry: Geometry) -> Tensor:
        left = codes["low"] + BASE * codes["high"].to(torch.int16)
        planes = quantising.unpredict(left, geometry) * codes["scale"][:, None, None]
        return planes.mT.reshape(len(planes), *signal.shape(geometry))
