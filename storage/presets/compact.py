"""Preset `compact`: entropy-coded features and deltas, fewer and shorter scores.

Shape letters: n records, A anchors a position, C channels, K classes, L levels, S positions of all
levels, R anchors an image, M kept scores of a record.

**Features** are rounded to one step per level, a quarter of the level's standard deviation: with
one step for all channels each takes the bits that it is worth, which is the best for a squared
error. A channel whose largest value would need more than 127 steps has a larger step of its own:
nothing is clipped. What is left after a prediction from neighbouring positions takes few bits once
Zstandard has seen it: its low four bits are packed in pairs, the rarely needed rest is apart.

**Deltas** are multiples of 1/128, predicted and stored likewise, with eight low bits: the L1 loss
turns on the sign of small differences, so a coarse step would turn gradients round.

**Scores** are the M largest, with values rounded on a square-root scale (small probabilities are
the more numerous) and indices as gaps, and a model of the others; see `scores`.

docs/COMPACT.md tells what else was tried, and what each choice costs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from storage.presets import codes as coding
from storage.presets import scores
from storage.presets.base import DecodedOutputs, RawOutputs
from storage.presets.placing import Placing
from storage.schema import Field, Geometry

FEATURE_STEP = 1 / 4
FEATURE_BASE = 16
DELTA_STEP = 1 / 128
DELTA_BASE = 256
DELTA_LIMIT = 8000
STEPS_PER_OCTAVE = 8
VALUE_LIMIT = 255

# What Zstandard leaves of each field: its share at 800x1344, and how much larger that becomes when
# the positions get fewer by a factor of e. Small maps are mostly border, which is predicted badly.
# Between those of trained teachers, two for large views and two for views of 96 to 640 px; single
# teachers are up to an eighth away.
_LARGE = 22_400  # positions of 800x1344
_SHARE_LEFT = {
    "features_low": (0.6, 0.07), "features_high": (0.005, 0.011), "feature_scale": (0.01, 0.005),
    "score_value": (0.65, 0.03), "score_rest": (0.7, -0.02), "score_power": (0.45, 0.06),
    "score_profile": (0.8, 0.0), "deltas_low": (0.5, 0.04), "deltas_high": (0.001, 0.001),
}  # fmt: skip
# Of the bits that the gaps would take if the kept scores were anywhere.
_GAP_SHARE = 0.65


@dataclass(frozen=True, kw_only=True)
class Compact(scores.SparsePreset):
    """Entropy-coded features and deltas, sparse scores.

    Attributes:
        scores_kept: M, kept scores of a record; 0 for R / 8, at least 4,096.
    """

    name: ClassVar[str] = "compact"
    anchors_per_score: ClassVar[int] = 8
    least_scores: ClassVar[int] = 4096

    def fields(self, geometry: Geometry) -> list[Field]:
        num_kept, planes = self.num_kept(geometry), 4 * geometry.num_anchors
        channels, num_positions = geometry.channels, geometry.num_positions
        rest = "code = what is left + left + above - above left, zero outside of the level's map"
        return [
            Field(
                "features_low", (channels, -(-num_positions // 2)), "uint8", "zstd",
                attributes={
                    "meaning": "low part of what is left of the codes after prediction, two"
                    f" positions a byte, the first in bits 0 to 3: left = bits - 8 +"
                    f" {FEATURE_BASE} * features_high",
                    "prediction": rest,
                    "value": "code * feature_scale[level, channel]",
                    "positions": "level, H, W",
                },
            ),
            Field(
                "features_high", (channels, num_positions), "int8", "zstd",
                attributes={"meaning": "see features_low", "positions": "level, H, W"},
            ),
            Field(
                "feature_scale", (geometry.num_levels, channels), "float32", "zstd",
                attributes={"meaning": "value of code 1 of each level and channel"},
            ),
            Field(
                "score_gap", (4, num_kept), "uint8", "zstd",
                attributes={
                    "meaning": "index of each kept score minus the one before, ascending; byte"
                    " planes of a 32-bit number, lowest first; index = anchor * K + class",
                    "anchors": "level, H, W, A",
                },
            ),
            Field(
                "score_value", (num_kept,), "uint8", "zstd",
                attributes={
                    "meaning": f"probability of each kept score = (code / {VALUE_LIMIT})^2"
                },
            ),
            *scores.rest_fields(geometry, STEPS_PER_OCTAVE, "zstd"),
            Field(
                "deltas_low", (planes, num_positions), "int8", "zstd",
                attributes={
                    "meaning": "low part of what is left of the codes after prediction: left ="
                    f" deltas_low + {DELTA_BASE} * deltas_high",
                    "prediction": rest,
                    "value": "code * delta_scale",
                    "planes": "A, then dx, dy, dw, dh",
                    "positions": "level, H, W",
                },
            ),
            Field(
                "deltas_high", (planes, num_positions), "int8", "zstd",
                attributes={"meaning": "see deltas_low"},
            ),
            Field(
                "delta_scale", (), "float32", attributes={"meaning": "value of code 1 of deltas"}
            ),
        ]  # fmt: skip

    def typical_bytes(self, geometry: Geometry) -> dict[str, int]:
        """See `Preset`."""
        smaller = max(0.0, math.log(_LARGE / geometry.num_positions))
        fields = (one for one in self.fields(geometry) if one.compression)
        sizes = {
            one.name: round(one.num_bytes * min(large + more * smaller, 1.0))
            for one in fields
            for large, more in [_SHARE_LEFT.get(one.name, (1.0, 0.0))]
        }
        return sizes | {"score_gap": _typical_gaps(self.num_kept(geometry), geometry)}

    def _encode(self, raw: RawOutputs, geometry: Geometry) -> dict[str, Tensor]:
        index, value, dropped = scores.keep_largest(raw.logits.detach(), self.num_kept(geometry))
        return {
            **_encode_features(raw.features.detach(), geometry),
            "score_gap": _encode_gaps(index),
            "score_value": (value.sqrt() * VALUE_LIMIT).round_().to(torch.uint8),
            **scores.encode_rest(dropped, index, geometry, STEPS_PER_OCTAVE),
            **_encode_deltas(raw.deltas.detach(), geometry),
        }

    def _unpacked(self, codes: Mapping[str, Tensor], geometry: Geometry) -> dict[str, Tensor]:
        low = coding.unpack_pairs(codes["features_low"], geometry.num_positions)
        power = scores.unpack_power(codes["score_power"], geometry.num_boxes)
        index = _decode_gaps(codes["score_gap"])
        return {**codes, "features_low": low, "score_power": power, "score_index": index}

    def _placed(
        self,
        records: Sequence[Mapping[str, Tensor]],
        placing: Placing,
        geometries: Sequence[Geometry],
        grid: Geometry,
    ) -> dict[str, Tensor]:
        def of_all(name: str) -> list[Tensor]:
            return [record[name] for record in records]

        packed, num_kept = of_all("features_low"), self.num_kept(grid)
        sizes = [2 * one.shape[1] for one in packed]
        joined = coding.unpack_pairs(torch.cat(packed, dim=1)[None], sum(sizes))[0]
        parts = torch.split(joined, sizes, dim=1)
        low = [
            x[:, : geometry.num_positions] for x, geometry in zip(parts, geometries, strict=True)
        ]
        counts = [one.shape[1] for one in of_all("score_gap")]
        index = _decode_gaps(placing.padded(of_all("score_gap"), num_kept))
        return {
            # With nothing left beyond the record, predictions repeat its last row and column.
            "features_low": placing.positions(low, outside=0),
            "features_high": placing.positions(of_all("features_high"), outside=0),
            "feature_scale": torch.stack(of_all("feature_scale")),
            "score_index": placing.scores(index, counts),
            "score_value": placing.padded(of_all("score_value"), num_kept),
            **scores.place_rest(records, placing, geometries),
            "deltas_low": placing.positions(of_all("deltas_low"), outside=0),
            "deltas_high": placing.positions(of_all("deltas_high"), outside=0),
            "delta_scale": torch.stack(of_all("delta_scale")),
        }

    def _decode_unpacked(self, codes: Mapping[str, Tensor], geometry: Geometry) -> DecodedOutputs:
        return DecodedOutputs(
            features=_decode_features(codes, geometry),
            probabilities=scores.decode_scores(
                codes["score_index"],
                codes["score_value"].to(torch.float32).div_(VALUE_LIMIT).square_(),
                codes,
                geometry,
                STEPS_PER_OCTAVE,
            ),
            deltas=_decode_deltas(codes, geometry),
        )


def _encode_features(features: Tensor, geometry: Geometry) -> dict[str, Tensor]:
    """Encode (n, C, S) features into the three fields that hold them."""
    spread = [
        features[:, :, start:stop].float().flatten(1).std(dim=1, correction=0)
        for start, stop in coding.levels_of(geometry)
    ]
    step = FEATURE_STEP * torch.stack(spread, dim=1)[:, :, None]  # [n, L, 1]
    scale = torch.maximum(step, coding.largest(features, geometry) / coding.FEATURE_LIMIT)
    codes = coding.quantise(features, scale, geometry).to(torch.int16)
    low, high = coding.split(coding.predict(codes, geometry), FEATURE_BASE)
    return {
        "features_low": coding.pack_pairs(low),
        "features_high": high.to(torch.int8),
        "feature_scale": scale,
    }


def _decode_features(codes: Mapping[str, Tensor], geometry: Geometry) -> Tensor:
    """Undo `_encode_features`: the three fields, the first unpacked, to (n, C, S) float32."""
    left = codes["features_low"] + FEATURE_BASE * codes["features_high"].to(torch.int16)
    return coding.dequantise(coding.unpredict(left, geometry), codes["feature_scale"], geometry)


def _encode_deltas(deltas: Tensor, geometry: Geometry) -> dict[str, Tensor]:
    """Encode (n, R, 4) deltas into the three fields that hold them."""
    shape = (len(deltas), geometry.num_positions, 4 * geometry.num_anchors)
    planes = deltas.float().reshape(shape).mT.contiguous()  # [n, 4A, S]
    # The step only grows for deltas beyond 62, which no box transform of a detector gives.
    scale = (planes.abs().amax(dim=(1, 2)) / DELTA_LIMIT).clamp(min=DELTA_STEP)  # [n]
    codes = (planes / scale[:, None, None]).round_().to(torch.int16)
    low, high = coding.split(coding.predict(codes, geometry), DELTA_BASE)
    return {
        "deltas_low": low.to(torch.int8),
        "deltas_high": high.to(torch.int8),
        "delta_scale": scale,
    }


def _decode_deltas(codes: Mapping[str, Tensor], geometry: Geometry) -> Tensor:
    """Undo `_encode_deltas`: the three fields to (n, R, 4) float32."""
    left = codes["deltas_low"] + DELTA_BASE * codes["deltas_high"].to(torch.int16)
    planes = coding.unpredict(left, geometry) * codes["delta_scale"][:, None, None]
    return planes.mT.reshape(len(planes), geometry.num_boxes, 4)


def _encode_gaps(index: Tensor) -> Tensor:
    """Code (n, M) ascending indices as the byte planes (n, 4, M) uint8 of their gaps."""
    gaps = index.diff(dim=1, prepend=torch.zeros_like(index[:, :1]))
    return torch.stack([gaps >> shift & 255 for shift in (0, 8, 16, 24)], dim=1).to(torch.uint8)


def _typical_gaps(num_kept: int, geometry: Geometry) -> int:
    """Bytes of the gaps; by their entropy, which falls where almost all scores are kept."""
    kept = num_kept / (geometry.num_boxes * geometry.num_classes)
    dropped = 1 - kept
    entropy = -sum(share * math.log2(share) for share in (kept, dropped) if share)
    # Four planes, most of them zeros, take some bytes at the least.
    return round(_GAP_SHARE * entropy / kept * num_kept / 8) + 50


def _decode_gaps(planes: Tensor) -> Tensor:
    """Undo `_encode_gaps`: (n, 4, M) uint8 to (n, M) int64."""
    shifts = torch.arange(0, 32, 8, device=planes.device)
    return (planes.to(torch.int64) << shifts[:, None]).sum(dim=1).cumsum(dim=1)


PRESET = Compact
