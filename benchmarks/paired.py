"""Differences of two kinds of runs that share their seeds, and how sure their mean is."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Paired:
    """Differences by seed, one or more."""

    by_seed: tuple[float, ...]

    @classmethod
    def of(cls, ours: Mapping[int, float], theirs: Mapping[int, float]) -> Paired:
        """Ours minus theirs, seed by seed; both have the same seeds."""
        return cls(by_seed=tuple(value - theirs[seed] for seed, value in ours.items()))

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return statistics.mean(self.by_seed)

    @property
    def half_width(self) -> float | None:
        """Half the 95% interval of the mean, by Student's t; None with one seed."""
        # The package imports PyTorch, which `--help` need not wait for.
        from stage2_distill.sweep.statistics import half_width

        return half_width(self.by_seed)

    @property
    def interval(self) -> tuple[float, float] | None:
        """The ends of that interval."""
        half = self.half_width
        return None if half is None else (self.mean - half, self.mean + half)

    def __str__(self) -> str:
        if self.interval is None:
            return f"{self.mean:+.2f}, one seed"
        low, high = self.interval
        return f"{self.mean:+.2f}, 95% interval {low:+.2f} to {high:+.2f}"
