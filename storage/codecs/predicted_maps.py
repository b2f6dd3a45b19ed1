"""Codec `predicted_maps`: features rounded to one step per level, predicted from their neighbours.

The step is a quarter of the level's standard deviation, and half as much again where a level has a
stride below 8 pixels, as P2 does: three quarters of all positions are its own. With one step for
all channels each takes the bits that it is worth, which is the best for a squared error. A channel
whose largest value would need more than 127 steps has a larger step of its own: nothing is clipped.
What is left after a prediction from neighbouring positions takes few bits once Zstandard has seen
it: its low four bits are packed in pairs, the rarely needed rest is apart.

docs/COMPACT.md tells what else was tried, and what each choice costs.

Shape letters: n records, C channels, L levels, S positions of all levels.
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

STEP = 1 / 4
FINE_STEP = 3 / 8  # of levels with a stride below 8 pixels
BASE = 16


@dataclass(frozen=True, kw_only=True)
class PredictedMaps(PlacedCodec):
    """Entropy-coded features."""

    name: ClassVar[str] = "predicted_maps"
    kinds: ClassVar[tuple[str, ...]] = ("maps",)
    compression: ClassVar[str | None] = "zstd"

    def fields(self, signal: Signal, geometry: Geometry) -> list[Field]:
        channels, num_positions = signal.shape(geometry)
        return [
            Field(
                "low", (channels, -(-num_positions // 2)), "uint8",
                attributes={
                    "meaning": "low part of what is left of the codes after prediction, two"
                    " positions a byte, the first in bits 0 to 3: left = bits - 8 +"
                    f" {BASE} * high",
                    "prediction": quantising.PREDICTION,
                    "value": "code * scale[level, channel]",
                    "positions": "level, H, W",
                },
            ),
            Field(
                "high", (channels, num_positions), "int8",
                attributes={"meaning": "see low", "positions": "level, H, W"},
            ),
            quantising.scale_field(signal, geometry),
        ]  # fmt: skip

    def typical_bytes(self, signal: Signal, geometry: Geometry) -> int | None:
        low, high, scale = (field.num_bytes for field in self.fields(signal, geometry))
        share = quantising.typical_share
        return round(
            low * share(geometry, 0.6, 0.07)
            + high * share(geometry, 0.005, 0.011)
            + scale * share(geometry, 0.01, 0.005)
        )

    def encode(self, values: Tensor, signal: Signal, geometry: Geometry) -> dict[str, Tensor]:
        spread = [
            values[:, :, start:stop].float().flatten(1).std(dim=1, correction=0)
            for start, stop in quantising.levels_of(geometry)
        ]
        # Sizes are rounded up: a stride of 8 leaves more than 4 pixels per row, one of 4 does not.
        shares = [STEP if geometry.height > 4 * h else FINE_STEP for h, _ in geometry.level_sizes]
        steps = [share * one for share, one in zip(shares, spread, strict=True)]
        step = torch.stack(steps, dim=1)[:, :, None]  # [n, L, 1]
        largest = quantising.largest(values, geometry)
        scale = torch.maximum(step, largest / quantising.FEATURE_LIMIT)
        codes = quantising.quantise(values, scale, geometry).to(torch.int16)
        low, high = quantising.split(quantising.predict(codes, geometry), BASE)
        return {"low": quantising.pack_pairs(low), "high": high.to(torch.int8), "scale": scale}

    def unpack(self, codes: Codes, signal: Signal, geometry: Geometry) -> Codes:
        return {**codes, "low": quantising.unpack_pairs(codes["low"], geometry.num_positions)}

    def place(self, records: Sequence[Codes], signal: Signal, placing: Placing) -> Codes:
        packed = of_all(records, "low")
        sizes = [2 * one.shape[1] for one in packed]
        joined = quantising.unpack_pairs(torch.cat(packed, dim=1)[None], sum(sizes))[0]
        parts = zip(torch.split(joined, sizes, dim=1), placing.geometries, strict=True)
        low = [part[:, : geometry.num_positions] for part, geometry in parts]
        return {
            # With nothing left beyond the record, predictions repeat its last row and column.
            "low": placing.positions(low, outside=0),
            "high": placing.positions(of_all(records, "high"), outside=0),
            "scale": stacked(records, "scale"),
        }

    def decode_unpacked(self, codes: Codes, signal: Signal, geometry: Geometry) -> Tensor:
        left = codes["low"] + BASE * codes["high"].to(torch.int16)
        return quantising.dequantise(quantising.unpredict(left, geometry), codes["scale"], geometry)
