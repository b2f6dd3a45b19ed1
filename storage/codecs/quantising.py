"""Linear codes of dense fields: rounding to steps, prediction, and packing. Not a codec.

Shape letters: n records, C channels, L levels, S positions of all levels.
"""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from storage.schema import Field, Geometry
from storage.signals import Signal

FEATURE_LIMIT = 127
PREDICTION = "code = what is left + left + above - above left, zero outside of the level's map"

# Divisors are clamped by it: a channel of zeros then has codes of zero.
TINY = torch.finfo(torch.float32).tiny


def scale_field(signal: Signal, geometry: Geometry) -> Field:
    """Return the field of what code 1 stands for, of each level and channel of some maps."""
    return Field(
        "scale", (geometry.num_levels, signal.sizes["channels"]), "float32",
        attributes={
            "meaning": "value of code 1 of each level and channel", "limits": {"least": 0},
        },
    )  # fmt: skip


# Positions of 800x1344.
_LARGE = 22_400


def typical_share(geometry: Geometry, large: float, more: float) -> float:
    """Return what Zstandard leaves of some bytes of a record, as a share.

    Between those of trained teachers, two for large views and two for views of 96 to 640 px; single
    teachers are up to an eighth away.

    Args:
        geometry: of the record.
        large: the share at 800x1344.
        more: how much larger it becomes when the positions get fewer by a factor of e. Small maps
            are mostly border, which is predicted badly.
    """
    smaller = max(0.0, math.log(_LARGE / geometry.num_positions))
    return min(large + more * smaller, 1.0)


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
        step = scale[:, level, :, None].clamp(min=TINY)
        ratio = features[:, :, start:stop].float() / step
        codes[:, :, start:stop] = ratio.round_().clamp_(-FEATURE_LIMIT, FEATURE_LIMIT)
    return codes


def dequantise(codes: Tensor, scale: Tensor, geometry: Geometry) -> Tensor:
    """Undo `quantise`: (n, C, S) integers and (n, L, C) float32 to (n, C, S) float32."""
    features = torch.empty(codes.shape, dtype=torch.float32, device=codes.device)
    for level, (start, stop) in enumerate(levels_of(geometry)):
        torch.mul(codes[:, :, start:stop], scale[:, level, :, None], out=features[:, :, start:stop])
    return features


def largest(features: Tensor, geometry: Geometry) -> Tensor:
    """Return the largest magnitude of each level and channel: (n, C, S) to (n, L, C) float32."""
    parts = [features[:, :, start:stop] for start, stop in levels_of(geometry)]
    return torch.stack([part.abs().amax(dim=2).float() for part in parts], dim=1)


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
