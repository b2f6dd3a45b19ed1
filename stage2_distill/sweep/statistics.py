"""Means over seeds, and paired differences with their 95% intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How far a row is from the first one, over the seeds that both have.

    Attributes:
        mean: of the differences by seed.
        half_width: of the interval around it in which the true difference lies with 95%
            confidence (Student's t); None with one seed, which tells nothing of the spread.
        seeds: how many.
    """

    mean: float
    half_width: float | None
    seeds: int


def spread(values: Mapping[int, float]) -> float | None:
    """Standard deviation over seeds; None where there are not two."""
    return statistics.stdev(values.values()) if len(values) > 1 else None


def paired_difference(values: Mapping[int, float], first: Mapping[int, float]) -> Difference | None:
    """Compare two rows seed by seed; None where no seed is in both."""
    found = [values[seed] - first[seed] for seed in values if seed in first]
    if not found:
        return None
    return Difference(mean=statistics.mean(found), half_width=half_width(found), seeds=len(found))


def half_width(differences: Sequence[float]) -> float | None:
    """Half the 95% interval of their mean, by Student's t; None of one, which tells nothing."""
    if len(differences) < 2:
        return None
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    return student_t(len(differences) - 1) * error


def student_t(degrees: int) -> float:
    """The t that |T| stays below with probability `CONFIDENCE`, T having Student's distribution.

    Args:
        degrees: of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while _probability(high, degrees) < CONFIDENCE:
        high *= 2
    while high - low > 1e-12 * high:
        middle = (low + high) / 2
        low, high = (middle, high) if _probability(middle, degrees) < CONFIDENCE else (low, middle)
    return high


def _probability(t: float, degrees: int) -> float:
    """P(|T| < t), in closed form (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, odd = math.cos(angle), degrees % 2
    term = cosine if odd else 1.0
    total = term if degrees > 1 else 0.0
    for k in range(2 + odd, degrees - 1, 2):
        term *= (k - 1) / k * cosine**2
        total += term
    total *= math.sin(angle)
    return (2 / math.pi) * (angle + total) if odd else total
