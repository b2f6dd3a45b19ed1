"""Codec `stepped_maps`: features in 8 bits, one step per level and channel.

The step is the largest magnitude / 127. The largest activations are the objects, which distillation
is about, so nothing is clipped.

Shape letters: n records, C channels, L levels, S positions of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from storage.codecs import quantising
from storage.codecs.base import Codes, PlacedCodec, of_all, stacked
from storage.codecs.placing import Placing
from storage.schema import Field, Geometry
from storage.signals import Signal


@dataclass(frozen=True, kw_only=True)
class SteppedMaps(PlacedCodec):
    """8-bit features: value = code * scale."""

    name: ClassVar[str] = "stepped_maps"
    kinds: ClassVar[tuple[str, ...]] = ("maps",)
    small: ClassVar[frozenset[str]] = frozenset({"scale"})

    def fields(self, signal: Signal, geometry: Geometry) -> list[Field]:
        limit = quantising.FEATURE_LIMIT
        return [
            Field(
                "codes", signal.shape(geometry), "int8",
                attributes={
                    "meaning": "pyramid features; value = code * scale[level, channel]",
                    "positions": "level, H, W",
                    "limits": {"least": -limit, "most": limit},
                },
            ),
            quantising.scale_field(signal, geometry),
        ]  # fmt: skip

    def encode(self, values: Tensor, signal: Signal, geometry: Geometry) -> dict[str, Tensor]:
        scale = quantising.largest(values, geometry) / quantising.FEATURE_LIMIT
        return {"codes": quantising.quantise(values, scale, geometry), "scale": scale}

    def place(self, records: Sequence[Codes], signal: Signal, placing: Placing) -> Codes:
        codes = placing.positions(of_all(records, "codes"))
        return {"codes": codes, "scale": stacked(records, "scale")}

    def decode_unpacked(self, codes: Codes, signal: Signal, geometry: Geometry) -> Tensor:
        return quantising.dequantise(codes["codes"], codes["scale"], geometry)
