"""A view's seed, and the random numbers that its steps draw from it.

The hash, version 1. All arithmetic is modulo 2**64; negative integers count as their two's
complement; G = 0x9E3779B97F4A7C15. `mix` is the finaliser of splitmix64 (Steele, Lea and
Flood, OOPSLA 2014; Vigna's constants):

    mix(z):  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9
             z = (z ^ (z >> 27)) * 0x94D049BB133111EB
             return z ^ (z >> 31)

    seed    = mix((mix((mix(base_seed + G) ^ image_id) + G) ^ view) + G)
    draw(k) = mix(seed + k * G)

    one of n        (draw >> 32) * n >> 32
    number below 1  (draw >> 11) / 2**53

The draws are the outputs of splitmix64 started at the seed, so they are independent. Every step has
draw numbers k of its own, its `draws`: resize 1, flip 2, ...; one step more leaves the others'
outcomes alone. Every cache depends on these numbers: a change needs a new `HASH_VERSION`, and the
golden values in the tests say so.

Shape letter: N views.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

HASH_NAME = "splitmix64-chain"
HASH_VERSION = 1

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def view_seeds(
    base_seed: int, image_ids: Sequence[int] | NDArray[Any], view: int
) -> NDArray[np.uint64]:
    """The seeds of one view of many images: (N,) integers to (N,) uint64."""
    ids = np.asarray(image_ids, dtype=np.int64).view(np.uint64)
    state = _mix(_plus(np.array([base_seed & _MASK], dtype=np.uint64), _GOLDEN))
    state = _mix(_plus(state ^ ids, _GOLDEN))
    return _mix(_plus(state ^ np.uint64(view & _MASK), _GOLDEN))


def draw(seeds: NDArray[np.uint64], number: int) -> NDArray[np.uint64]:
    """The draw of a number, from 1: (N,) seeds to (N,) uint64."""
    return _mix(_plus(seeds, number * _GOLDEN & _MASK))


def below_one(drawn: NDArray[np.uint64]) -> NDArray[np.float64]:
    """Turn draws into numbers of 0 or more and below 1."""
    return (drawn >> np.uint64(11)).astype(np.float64) * 2.0**-53


def one_of(drawn: NDArray[np.uint64], count: int | NDArray[np.int64]) -> NDArray[np.int64]:
    """Turn (N,) draws into numbers from 0 to `count` - 1, of one count or (N,) below 2**32."""
    counts = np.asarray(count).astype(np.uint64)
    return (((drawn >> np.uint64(32)) * counts) >> np.uint64(32)).astype(np.int64)


def _plus(z: NDArray[np.uint64], constant: int) -> NDArray[np.uint64]:
    # Arrays wrap modulo 2**64 in silence; numpy's scalars would warn.
    return z + np.uint64(constant)


def _mix(z: NDArray[np.uint64]) -> NDArray[np.uint64]:
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))
