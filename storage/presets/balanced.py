"""Preset `balanced`: 8-bit features, sparse class scores, float16 deltas.

Shape letters: n records, C channels, K classes, L levels, S positions of all levels, R anchors an
image, M kept scores of a record.

**Features** are symmetric int8 with one scale per level and channel: value = code * scale, scale =
max |value| / 127. The largest activations are the objects, which distillation is about, so nothing
is clipped.

**Scores** keep the M largest probabilities of a record, as (index, value) pairs sorted by index,
and a model of the others, 12 bits an anchor; see `scores`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from storage.presets import codes as coding
from storage.presets import scores
from storage.presets.base import DecodedOutputs, RawOutputs, to_half
from storage.presets.placing import Placing
from storage.schema import Field, Geometry

SCORE_LIMIT = 32_767
STEPS_PER_OCTAVE = 16


@dataclass(frozen=True, kw_only=True)
class Balanced(scores.SparsePreset):
    """8-bit features, sparse scores, float16 deltas.

    Attributes:
        scores_kept: M, kept scores of a record; 0 for R / 4, at least 8,192.
    """

    name: ClassVar[str] = "balanced"
    anchors_per_score: ClassVar[int] = 4
    least_scores: ClassVar[int] = 8192

    def fields(self, geometry: Geometry) -> list[Field]:
        num_boxes, num_kept = geometry.num_boxes, self.num_kept(geometry)
        return [
            Field(
                "features", (geometry.channels, geometry.num_positions), "int8",
                attributes={
                    "meaning": "pyramid features; value = code * feature_scale[level, channel]",
                    "positions": "level, H, W",
                },
            ),
            Field(
                "feature_scale", (geometry.num_levels, geometry.channels), "float32",
                attributes={"meaning": "value of code 1 of each level and channel"},
            ),
            Field(
                "score_index", (num_kept,), "int32",
                attributes={"meaning": "anchor * classes + class of each kept score, ascending"},
            ),
            Field(
                "score_value", (num_kept,), "int16",
                attributes={"meaning": f"probability of each kept score = code / {SCORE_LIMIT}"},
            ),
            *scores.rest_fields(geometry, STEPS_PER_OCTAVE, None),
            Field(
                "deltas", (num_boxes, 4), "float16",
                attributes={"meaning": "dx, dy, dw, dh", "anchors": "level, H, W, A"},
            ),
        ]  # fmt: skip

    def _encode(self, raw: RawOutputs, geometry: Geometry) -> dict[str, Tensor]:
        features = raw.features.detach()
        scale = coding.largest(features, geometry) / coding.FEATURE_LIMIT
        index, value, dropped = scores.keep_largest(raw.logits.detach(), self.num_kept(geometry))
        remedy = "use preset exact with CACHE.DTYPE float32"
        return {
            "features": coding.quantise(features, scale, geometry),
            "feature_scale": scale,
            "score_index": index.to(torch.int32),
            "score_value": (value * SCORE_LIMIT).round_().to(torch.int16),
            **scores.encode_rest(dropped, index, geometry, STEPS_PER_OCTAVE),
            "deltas": to_half(raw.deltas.detach(), "deltas", remedy),
        }

    def _unpacked(self, codes: Mapping[str, Tensor], geometry: Geometry) -> dict[str, Tensor]:
        power = scores.unpack_power(codes["score_power"], geometry.num_boxes)
        return {**codes, "score_power": power}

    def _placed(
        self,
        records: Sequence[Mapping[str, Tensor]],
        placing: Placing,
        geometries: Sequence[Geometry],
        grid: Geometry,
    ) -> dict[str, Tensor]:
        def of_all(name: str) -> list[Tensor]:
            return [record[name] for record in records]

        index = placing.padded(of_all("score_index"), self.num_kept(grid))
        return {
            "features": placing.positions(of_all("features")),
            "feature_scale": torch.stack(of_all("feature_scale")),
            "score_index": placing.scores(
                index.to(torch.int64), [len(x) for x in of_all("score_index")]
            ),
            "score_value": placing.padded(of_all("score_value"), self.num_kept(grid)),
            **scores.place_rest(records, placing, geometries),
            "deltas": placing.anchors(of_all("deltas")),
        }

    def _decode_unpacked(self, codes: Mapping[str, Tensor], geometry: Geometry) -> DecodedOutputs:
        return DecodedOutputs(
            features=coding.dequantise(codes["features"], codes["feature_scale"], geometry),
            probabilities=scores.decode_scores(
                codes["score_index"].to(torch.int64),
                codes["score_value"].to(torch.float32).div_(SCORE_LIMIT),
                codes,
                geometry,
                STEPS_PER_OCTAVE,
            ),
            deltas=codes["deltas"].float(),
        )


PRESET = Balanced
