"""Preset `balanced`: 8-bit features, sparse class scores, float16 deltas.

Shape letters: n records, C channels, K classes, L levels, S positions of all levels, R anchors an
image, M kept scores of a record.

**Features** are symmetric int8 with one scale per level and channel: value = code * scale, scale =
max |value| / 127. The largest activations are the objects, which distillation is about, so nothing
is clipped.

**Scores** keep the M largest probabilities of a record, as (index, value) pairs sorted by index.
Each anchor has one byte for the mean of its dropped probabilities, which stands for each of them:
the response loss is linear in the teacher's probabilities, and the many small background ones
carry it. The byte counts sixteenths of an octave below the record's largest dropped probability,
which is stored and bounds the error of every dropped one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from storage.presets.base import DecodedOutputs, Preset, RawOutputs, to_half
from storage.schema import Field, Geometry

FEATURE_LIMIT = 127
SCORE_LIMIT = 32_767
STEPS_PER_OCTAVE = 16
LAST_CODE = 255
MIN_SCORES_KEPT = 4096


def default_scores_kept(geometry: Geometry) -> int:
    """Return M by the preset's rule: one score for four anchors, at least 4096, at most all.

    The rule follows R rather than R * K, since the anchors that see an object, not the classes,
    decide how many probabilities are worth a place of their own.
    """
    dense = geometry.num_boxes * geometry.num_classes
    return min(dense, max(MIN_SCORES_KEPT, -(-geometry.num_boxes // 4)))


@dataclass(frozen=True, kw_only=True)
class Balanced(Preset):
    """8-bit features, sparse scores, float16 deltas.

    Attributes:
        scores_kept: M, kept scores of a record; 0 for the rule of `default_scores_kept`.
    """

    name: ClassVar[str] = "balanced"
    scores_kept: int = 0

    def __post_init__(self) -> None:
        if type(self.scores_kept) is not int or self.scores_kept < 0:
            raise ValueError(
                f"preset balanced: scores_kept {self.scores_kept!r}, expected an integer >= 0"
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
        if num_boxes * geometry.num_classes >= 1 << 31:
            raise ValueError(f"preset balanced: {geometry.name} has 2^31 scores or more an image")
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
            Field(
                "score_rest", (num_boxes,), "uint8",
                attributes={
                    "meaning": "mean of the anchor's dropped probabilities; 0: none, else"
                    f" score_bound * 2 ** ((code - {LAST_CODE}) / {STEPS_PER_OCTAVE})",
                    "anchors": "level, H, W, A",
                },
            ),
            Field(
                "score_bound", (), "float32",
                attributes={"meaning": "largest dropped probability of the record"},
            ),
            Field(
                "deltas", (num_boxes, 4), "float16",
                attributes={"meaning": "dx, dy, dw, dh", "anchors": "level, H, W, A"},
            ),
        ]  # fmt: skip

    def _encode(self, raw: RawOutputs, geometry: Geometry) -> dict[str, Tensor]:
        features, scale = quantise_features(raw.features.detach(), geometry)
        remedy = "use preset exact with CACHE.DTYPE float32"
        return {
            "features": features,
            "feature_scale": scale,
            **sparsify_scores(raw.logits.detach(), self.num_kept(geometry)),
            "deltas": to_half(raw.deltas.detach(), "deltas", remedy),
        }

    def _decode(self, codes: Mapping[str, Tensor], geometry: Geometry) -> DecodedOutputs:
        return DecodedOutputs(
            features=dequantise_features(codes["features"], codes["feature_scale"], geometry),
            probabilities=densify_scores(codes, geometry),
            deltas=codes["deltas"].float(),
        )


def quantise_features(features: Tensor, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Quantise to symmetric int8 with one scale per level and channel.

    Args:
        features: (n, C, S) floating point.
        geometry: says where the levels lie in S.

    Returns:
        Codes (n, C, S) int8 in [-127, 127], and scales (n, L, C) float32.
    """
    codes = torch.empty(features.shape, dtype=torch.int8, device=features.device)
    scales = []
    for start, stop in _levels(geometry):
        level = features[:, :, start:stop].float()  # [n, C, H_l * W_l]
        scale = level.abs().amax(dim=2) / FEATURE_LIMIT  # [n, C]
        # Clamped by the smallest normal number: a channel of zeros gives codes of zero.
        step = scale.clamp(min=torch.finfo(torch.float32).tiny)
        codes[:, :, start:stop] = (
            (level / step[:, :, None]).round_().clamp_(-FEATURE_LIMIT, FEATURE_LIMIT)
        )
        scales.append(scale)
    return codes, torch.stack(scales, dim=1)


def dequantise_features(codes: Tensor, scale: Tensor, geometry: Geometry) -> Tensor:
    """Undo `quantise_features`: (n, C, S) int8 and (n, L, C) float32 to (n, C, S) float32."""
    features = torch.empty_like(codes, dtype=torch.float32)
    for level, (start, stop) in enumerate(_levels(geometry)):
        torch.mul(codes[:, :, start:stop], scale[:, level, :, None], out=features[:, :, start:stop])
    return features


def sparsify_scores(logits: Tensor, num_kept: int) -> dict[str, Tensor]:
    """Keep the largest probabilities of each record and one stand-in per anchor for the others.

    Args:
        logits: (n, R, K) floating point.
        num_kept: M, at most R * K.

    Returns:
        The fields score_index (n, M) int32, score_value (n, M) int16, score_rest (n, R) uint8 and
        score_bound (n,) float32.
    """
    count, num_boxes, num_classes = logits.shape
    # float32 first: the sigmoid of a half-precision logit would be rounded twice.
    probabilities = torch.sigmoid(logits.float()).contiguous()
    flat = probabilities.view(count, -1)  # [n, R * K]
    index = _top_scores(probabilities, num_kept)  # [n, M]
    value = (flat.gather(1, index) * SCORE_LIMIT).round_().to(torch.int16)
    flat.scatter_(1, index, 0.0)
    bound = flat.amax(dim=1)  # [n]
    anchor = torch.div(index, num_classes, rounding_mode="floor")
    ones = torch.ones_like(anchor, dtype=torch.float32)
    num_kept_of_anchor = flat.new_zeros(count, num_boxes).scatter_add_(1, anchor, ones)
    dropped = num_classes - num_kept_of_anchor  # [n, R]
    mean = probabilities.sum(dim=2) / dropped.clamp_(min=1.0)
    return {
        "score_index": index.to(torch.int32),
        "score_value": value,
        "score_rest": encode_rest(mean, bound),
        "score_bound": bound,
    }


def _top_scores(probabilities: Tensor, num_kept: int) -> Tensor:
    """Return the (n, M) flat indices of the M largest of (n, R, K), ascending."""
    _, num_boxes, num_classes = probabilities.shape
    # The M largest lie on the M anchors with the largest maxima: looking at those alone takes
    # half the time on a CPU.
    best = probabilities.amax(dim=2)
    anchor = best.topk(min(num_kept, num_boxes), dim=1, sorted=False).indices  # [n, Q]
    scores = probabilities.gather(1, anchor[:, :, None].expand(-1, -1, num_classes))  # [n, Q, K]
    place = scores.flatten(1).topk(num_kept, dim=1, sorted=False).indices  # [n, M]
    row = torch.div(place, num_classes, rounding_mode="floor")
    index = anchor.gather(1, row) * num_classes + place % num_classes
    return index.sort(dim=1).values


def densify_scores(codes: Mapping[str, Tensor], geometry: Geometry) -> Tensor:
    """Undo `sparsify_scores`: the four fields to (n, R, K) float32 probabilities."""
    rest = decode_rest(codes["score_rest"], codes["score_bound"])  # [n, R]
    dense = rest[:, :, None].expand(-1, -1, geometry.num_classes).contiguous()
    value = codes["score_value"].to(torch.float32).div_(SCORE_LIMIT)
    dense.view(len(rest), -1).scatter_(1, codes["score_index"].to(torch.int64), value)
    return dense


def encode_rest(mean: Tensor, bound: Tensor) -> Tensor:
    """Code (n, R) means in [0, bound] as uint8, in sixteenths of an octave below (n,) bound."""
    ratio = mean / bound.clamp(min=torch.finfo(torch.float32).tiny)[:, None]
    steps = ratio.log2_().mul_(STEPS_PER_OCTAVE).round_()  # <= 0; -inf where the mean is 0
    return steps.add_(LAST_CODE).clamp_(0, LAST_CODE).to(torch.uint8)


def decode_rest(codes: Tensor, bound: Tensor) -> Tensor:
    """Undo `encode_rest`: (n, R) uint8 and (n,) float32 to (n, R) float32."""
    steps = torch.arange(LAST_CODE + 1, device=codes.device, dtype=torch.float32)
    table = torch.exp2((steps - LAST_CODE) / STEPS_PER_OCTAVE)
    table[0] = 0.0
    return table[codes.to(torch.int64)] * bound[:, None]


def _levels(geometry: Geometry) -> list[tuple[int, int]]:
    """Return (start, stop) of every level in S."""
    offsets = geometry.level_offsets
    return list(pairwise(offsets))


PRESET = Balanced
