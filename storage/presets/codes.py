"""What the lossy presets are made of: linear codes of features, sparse scores, coded means.

Not a preset. Shape letters: n records, C channels, K classes, L levels, S positions of all levels,
R anchors an image, M kept scores of a record.

**Sparse scores**: the M largest probabilities of a record keep a place of their own. Each anchor
has one byte for the mean of its dropped probabilities, which stands for each of them: the response
loss is linear in the teacher's probabilities, and the many small background ones carry it. The
byte counts fractions of an octave below the record's largest dropped probability, which is stored
and bounds the error of every dropped one.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from storage.schema import Geometry

FEATURE_LIMIT = 127
LAST_CODE = 255

# Divisors are clamped by it: a channel of zeros then has codes of zero.
_TINY = torch.finfo(torch.float32).tiny


def levels_of(geometry: Geometry) -> list[tuple[int, int]]:
    """Return (start, stop) of every level in S."""
    return list(pairwise(geometry.level_offsets))


def quantise(features: Tensor, scale: Tensor, geometry: Geometry) -> Tensor:
    """Round features to multiples of their scale.

    Args:
        features: (n, C, S) floating point.
        scale: (n, L, C) float32, value of code 1.
        geometry: says where the levels lie in S.

    Returns:
        (n, C, S) int8 in [-127, 127].
    """
    codes = torch.empty(features.shape, dtype=torch.int8, device=features.device)
    for level, (start, stop) in enumerate(levels_of(geometry)):
        step = scale[:, level, :, None].clamp(min=_TINY)
        ratio = features[:, :, start:stop].float() / step
        codes[:, :, start:stop] = ratio.round_().clamp_(-FEATURE_LIMIT, FEATURE_LIMIT)
    return codes


def dequantise(codes: Tensor, scale: Tensor, geometry: Geometry) -> Tensor:
    """Undo `quantise`: (n, C, S) integers and (n, L, C) float32 to (n, C, S) float32."""
    features = torch.empty_like(codes, dtype=torch.float32)
    for level, (start, stop) in enumerate(levels_of(geometry)):
        torch.mul(codes[:, :, start:stop], scale[:, level, :, None], out=features[:, :, start:stop])
    return features


def largest(features: Tensor, geometry: Geometry) -> Tensor:
    """Return the largest magnitude of each level and channel: (n, C, S) to (n, L, C) float32."""
    parts = [features[:, :, start:stop] for start, stop in levels_of(geometry)]
    return torch.stack([part.abs().amax(dim=2).float() for part in parts], dim=1)


@dataclass(frozen=True, kw_only=True)
class SparseScores:
    """The class scores of n records, taken apart.

    Attributes:
        index: (n, M) int64, anchor * K + class of each kept score, ascending.
        value: (n, M) float32, its probability.
        mean: (n, R) float32, mean of each anchor's dropped probabilities; 0 where none is.
        bound: (n,) float32, the record's largest dropped probability.
    """

    index: Tensor
    value: Tensor
    mean: Tensor
    bound: Tensor


def sparsify(logits: Tensor, num_kept: int) -> SparseScores:
    """Keep the largest probabilities of each record and the mean of each anchor's others.

    Args:
        logits: (n, R, K) floating point.
        num_kept: M, at most R * K.
    """
    count, num_boxes, num_classes = logits.shape
    # float32 first: the sigmoid of a half-precision logit would be rounded twice.
    probabilities = torch.sigmoid(logits.float()).contiguous()
    flat = probabilities.view(count, -1)  # [n, R * K]
    index = _top_scores(probabilities, num_kept)  # [n, M]
    value = flat.gather(1, index)
    flat.scatter_(1, index, 0.0)
    anchor = torch.div(index, num_classes, rounding_mode="floor")
    ones = torch.ones_like(anchor, dtype=torch.float32)
    num_kept_of_anchor = flat.new_zeros(count, num_boxes).scatter_add_(1, anchor, ones)
    dropped = num_classes - num_kept_of_anchor  # [n, R]
    mean = probabilities.sum(dim=2) / dropped.clamp_(min=1.0)
    return SparseScores(index=index, value=value, mean=mean, bound=flat.amax(dim=1))


def densify(index: Tensor, value: Tensor, rest: Tensor, num_classes: int) -> Tensor:
    """Put kept scores and the stand-ins of the others together.

    Args:
        index: (n, M) int64. value: (n, M) float32.
        rest: (n, R) float32, what stands for each dropped probability of the anchor.
        num_classes: K.

    Returns:
        (n, R, K) float32.
    """
    dense = rest[:, :, None].expand(-1, -1, num_classes).contiguous()
    dense.view(len(rest), -1).scatter_(1, index, value)
    return dense


def encode_means(mean: Tensor, bound: Tensor, steps_per_octave: int) -> Tensor:
    """Code (n, R) means in [0, bound] as uint8, in fractions of an octave below (n,) bound."""
    ratio = mean / bound.clamp(min=_TINY)[:, None]
    steps = ratio.log2_().mul_(steps_per_octave).round_()  # <= 0; -inf where the mean is 0
    return steps.add_(LAST_CODE).clamp_(0, LAST_CODE).to(torch.uint8)


def decode_means(codes: Tensor, bound: Tensor, steps_per_octave: int) -> Tensor:
    """Undo `encode_means`: (n, R) uint8 and (n,) float32 to (n, R) float32."""
    steps = torch.arange(LAST_CODE + 1, device=codes.device, dtype=torch.float32)
    table = torch.exp2((steps - LAST_CODE) / steps_per_octave)
    table[0] = 0.0
    return table[codes.to(torch.int64)] * bound[:, None]


def meaning_of_means(steps_per_octave: int) -> str:
    """Say in an array's attributes what the codes of `encode_means` are."""
    return (
        "mean of the anchor's dropped probabilities; 0: none, else score_bound * 2 **"
        f" ((code - {LAST_CODE}) / {steps_per_octave})"
    )


def check_num_scores(preset: str, geometry: Geometry) -> None:
    """Refuse more scores than an int32 index can count.

    Raises:
        ValueError: names the preset and the bucket.
    """
    if geometry.num_boxes * geometry.num_classes >= 1 << 31:
        raise ValueError(f"preset {preset}: {geometry.name} has 2^31 scores or more an image")


def predict(codes: Tensor, geometry: Geometry) -> Tensor:
    """Return what is left of codes after a prediction from their neighbours in the level's map.

    The prediction is left + above - above left, with zeros outside of the map.

    Args:
        codes: (n, C, S) int16, magnitudes up to 8191, so that nothing overflows.
        geometry: says where the levels lie in S and how wide they are.

    Returns:
        (n, C, S) int16.
    """
    left = torch.empty_like(codes)
    for (start, stop), size in zip(levels_of(geometry), geometry.level_sizes, strict=True):
        level = codes[:, :, start:stop].reshape(*codes.shape[:2], *size)
        across = level.clone()
        across[..., 1:] -= level[..., :-1]
        both = across.clone()
        both[..., 1:, :] -= across[..., :-1, :]
        left[:, :, start:stop] = both.flatten(2)
    return left


def unpredict(left: Tensor, geometry: Geometry) -> Tensor:
    """Undo `predict`: two cumulative sums a level, (n, C, S) int16."""
    codes = torch.empty_like(left)
    for (start, stop), size in zip(levels_of(geometry), geometry.level_sizes, strict=True):
        level = left[:, :, start:stop].reshape(*left.shape[:2], *size)
        sums = level.cumsum(dim=3, dtype=torch.int16).cumsum(dim=2, dtype=torch.int16)
        codes[:, :, start:stop] = sums.flatten(2)
    return codes


def split(codes: Tensor, base: int) -> tuple[Tensor, Tensor]:
    """Write int16 codes as low + base * high, with low in [-base / 2, base / 2); int16 both.

    Small codes of either sign have a high part of zero, which compresses to nothing.
    """
    low = (codes + base // 2).remainder(base) - base // 2
    return low, (codes - low).div(base, rounding_mode="trunc")


def pack_pairs(codes: Tensor) -> Tensor:
    """Pack (n, C, S) int16 in [-8, 8) as (n, C, ceil(S / 2)) uint8, two neighbours a byte.

    As pairs they also compress better: Huffman codes have whole bits, and matches of a few cheap
    symbols, which cost Zstandard more than the symbols, no longer occur.
    """
    padded = torch.nn.functional.pad(codes + 8, (0, codes.shape[2] % 2), value=8)
    return (padded[:, :, 0::2] | padded[:, :, 1::2] << 4).to(torch.uint8)


def unpack_pairs(packed: Tensor, num_positions: int) -> Tensor:
    """Undo `pack_pairs`: (n, C, ceil(S / 2)) uint8 to (n, C, S) int16."""
    both = torch.stack([packed & 15, packed >> 4], dim=3).flatten(2)
    return both[:, :, :num_positions].to(torch.int16) - 8


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
