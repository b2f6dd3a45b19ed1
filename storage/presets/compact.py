"""Preset `compact`: entropy-coded features, fewer and shorter scores, deltas of two finenesses.

Shape letters: n records, C channels, K classes, L levels, S positions of all levels, R anchors an
image, M kept scores of a record.

**Features** are rounded to one step per level, a fixed share of the level's standard deviation:
with one step for all channels, each channel takes the bits that it is worth, which is the best for
a squared error. A position then holds what is left after a prediction from its neighbours (or the
code itself, where the prediction does not help), and Zstandard stores that in a few bits. A step
of sigma / 3 bounds the entropy of any distribution by 3.7 bits. A channel whose largest value
would need more than 127 steps has a larger step of its own: nothing is clipped.

**Scores** are those of `codes`, with values rounded on a square-root scale (small probabilities
are the more numerous) and indices as gaps.

**Deltas** are multiples of a small step at the anchors that hold a kept score, where boxes are
decoded, and of a large step elsewhere, where only their mean error enters the response loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from storage.presets import codes as coding
from storage.presets.base import DecodedOutputs, Preset, RawOutputs
from storage.schema import Field, Geometry

FEATURE_STEP = 1 / 3
DELTA_STEP = 1 / 32
COARSE = 4
STEPS_PER_OCTAVE = 8
VALUE_LIMIT = 255
MIN_SCORES_KEPT = 2048


def default_scores_kept(geometry: Geometry) -> int:
    """Return M by the preset's rule: one score for 16 anchors, at least 2048, at most all."""
    dense = geometry.num_boxes * geometry.num_classes
    return min(dense, max(MIN_SCORES_KEPT, -(-geometry.num_boxes // 16)))


@dataclass(frozen=True, kw_only=True)
class Compact(Preset):
    """Entropy-coded features, sparse scores, 8-bit deltas.

    Attributes:
        scores_kept: M, kept scores of a record; 0 for the rule of `default_scores_kept`.
    """

    name: ClassVar[str] = "compact"
    scores_kept: int = 0

    def __post_init__(self) -> None:
        if type(self.scores_kept) is not int or self.scores_kept < 0:
            raise ValueError(
                f"preset compact: scores_kept {self.scores_kept!r}, expected an integer >= 0"
            )

    @property
    def parameters(self) -> dict[str, Any]:
        return {"scores_kept": self.scores_kept}

    def num_kept(self, geometry: Geometry) -> int:
        """Return M for a geometry."""
        dense = geometry.num_boxes * geometry.num_classes
        return min(self.scores_kept, dense) or default_scores_kept(geometry)

    def fields(self, geometry: Geometry) -> list[Field]:
        num_boxes, num_kept = geometry.num_boxes, self.num_kept(geometry)
        coding.check_num_scores(self.name, geometry)
        return [
            Field(
                "features", (geometry.channels, geometry.num_positions), "int8", "zstd",
                attributes={
                    "meaning": "pyramid features; value = code * feature_scale[level, channel]",
                    "prediction": "where feature_predicted[level] is 1, what is stored is the code"
                    " - left - above + above left of the level's map, modulo 256, codes outside"
                    " of the map being 0; else the code itself",
                    "positions": "level, H, W",
                },
            ),
            Field(
                "feature_scale", (geometry.num_levels, geometry.channels), "float32", "zstd",
                attributes={"meaning": "value of code 1 of each level and channel"},
            ),
            Field(
                "feature_predicted", (geometry.num_levels,), "uint8",
                attributes={"meaning": "1 for each level whose codes are stored by prediction"},
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
                attributes={"meaning": f"probability of each kept score = (code / {VALUE_LIMIT})^2"},
            ),
            Field(
                "score_rest", (num_boxes,), "uint8", "zstd",
                attributes={
                    "meaning": coding.meaning_of_means(STEPS_PER_OCTAVE),
                    "anchors": "level, H, W, A",
                },
            ),
            Field(
                "score_bound", (), "float32",
                attributes={"meaning": "largest dropped probability of the record"},
            ),
            Field(
                "deltas", (num_boxes, 4), "int8", "zstd",
                attributes={
                    "meaning": "dx, dy, dw, dh = code * delta_scale",
                    "anchors": "level, H, W, A",
                },
            ),
            Field(
                "delta_scale", (4,), "float32",
                attributes={"meaning": "value of code 1 of dx, dy, dw, dh"},
            ),
        ]  # fmt: skip

    def _encode(self, raw: RawOutputs, geometry: Geometry) -> dict[str, Tensor]:
        scores = coding.sparsify(raw.logits.detach(), self.num_kept(geometry))
        deltas, delta_scale = _quantise_deltas(
            raw.deltas.detach(), scores.index // geometry.num_classes
        )
        return {
            **_encode_features(raw.features.detach(), geometry),
            "score_gap": _encode_gaps(scores.index),
            "score_value": (scores.value.sqrt() * VALUE_LIMIT).round_().to(torch.uint8),
            "score_rest": coding.encode_means(scores.mean, scores.bound, STEPS_PER_OCTAVE),
            "score_bound": scores.bound,
            "deltas": deltas,
            "delta_scale": delta_scale,
        }

    def _decode(self, codes: Mapping[str, Tensor], geometry: Geometry) -> DecodedOutputs:
        return DecodedOutputs(
            features=_decode_features(codes, geometry),
            probabilities=coding.densify(
                _decode_gaps(codes["score_gap"]),
                codes["score_value"].to(torch.float32).div_(VALUE_LIMIT).square_(),
                coding.decode_means(codes["score_rest"], codes["score_bound"], STEPS_PER_OCTAVE),
                geometry.num_classes,
            ),
            deltas=codes["deltas"].float() * codes["delta_scale"][:, None],
        )


def _encode_features(features: Tensor, geometry: Geometry) -> dict[str, Tensor]:
    """Encode (n, C, S) features into the three fields that hold them."""
    spread = [
        features[:, :, start:stop].float().flatten(1).std(dim=1, correction=0)
        for start, stop in coding.levels_of(geometry)
    ]
    step = FEATURE_STEP * torch.stack(spread, dim=1)  # [n, L]
    scale = torch.maximum(
        step[:, :, None], coding.largest(features, geometry) / coding.FEATURE_LIMIT
    )
    codes = coding.quantise(features, scale, geometry)
    predicted = []
    levels = zip(coding.levels_of(geometry), coding.predict(codes, geometry), strict=True)
    for (start, stop), left in levels:
        level = codes[:, :, start:stop]
        # Small numbers take few bits: a good enough measure to choose by.
        smaller = _size(left) < _size(level)  # [n]
        level.copy_(torch.where(smaller[:, None, None], left, level))
        predicted.append(smaller)
    return {
        "features": codes,
        "feature_scale": scale,
        "feature_predicted": torch.stack(predicted, dim=1).to(torch.uint8),
    }


def _decode_features(codes: Mapping[str, Tensor], geometry: Geometry) -> Tensor:
    """Undo `_encode_features`: the three fields to (n, C, S) float32."""
    features = codes["features"].clone()
    predicted = codes["feature_predicted"] != 0  # [n, L]
    levels = zip(coding.levels_of(geometry), coding.unpredict(features, geometry), strict=True)
    for number, ((start, stop), whole) in enumerate(levels):
        level = features[:, :, start:stop]
        level.copy_(torch.where(predicted[:, number, None, None], whole, level))
    return coding.dequantise(features, codes["feature_scale"], geometry)


def _size(codes: Tensor) -> Tensor:
    """Sum of magnitudes of (n, ...) int8, as (n,) int64: exact, so the same on every device."""
    return codes.to(torch.int16).abs_().flatten(1).sum(dim=1)


def _encode_gaps(index: Tensor) -> Tensor:
    """Code (n, M) ascending indices as the byte planes (n, 4, M) uint8 of their gaps."""
    gaps = index.diff(dim=1, prepend=torch.zeros_like(index[:, :1]))
    return torch.stack([gaps >> shift & 255 for shift in (0, 8, 16, 24)], dim=1).to(torch.uint8)


def _decode_gaps(planes: Tensor) -> Tensor:
    """Undo `_encode_gaps`: (n, 4, M) uint8 to (n, M) int64."""
    shifts = torch.tensor([0, 8, 16, 24], device=planes.device)
    return (planes.to(torch.int64) << shifts[:, None]).sum(dim=1).cumsum(dim=1)


def _quantise_deltas(deltas: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
    """Round deltas, finely at some anchors.

    Args:
        deltas: (n, R, 4) floating point.
        anchors: (n, M) int64, those with kept scores; they may repeat.

    Returns:
        Codes (n, R, 4) int8, and the value of code 1, (n, 4) float32.
    """
    deltas = deltas.float()
    scale = (deltas.abs().amax(dim=1) / coding.FEATURE_LIMIT).clamp(min=DELTA_STEP)  # [n, 4]
    ratio = deltas / scale[:, None]
    fine = torch.zeros(deltas.shape[:2], dtype=torch.bool, device=deltas.device)
    fine.scatter_(1, anchors, True)
    limit = coding.FEATURE_LIMIT // COARSE * COARSE
    coarse = (ratio / COARSE).round_().mul_(COARSE).clamp_(-limit, limit)
    return torch.where(fine[:, :, None], ratio.round(), coarse).to(torch.int8), scale


PRESET = Compact
