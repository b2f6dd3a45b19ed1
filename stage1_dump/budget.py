"""How many views of the planned images fit a given size, under every preset and in part."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Any

from detectors.stored import Stored
from storage import Preset
from storage.progress import format_bytes
from storage.schema import MAX_RECORDS

from .prepare import Prepared, with_part, with_views
from .sizes import (
    PresetEstimate,
    Sample,
    candidates,
    estimate_preset,
    shards_of_buckets,
    title_of,
)

# An epoch shows one view of each image, and few trainings have more epochs.
_MOST_VIEWS = 100


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What fits of one preset, or of a part of its records.

    Attributes:
        views: the most that fit; 0 where not even one does.
        bytes: that they take, with the estimates of the plan; of one view where none fits.
        about: what the number is, as `PresetEstimate.about`.
        more: whether more might fit: the search ends at some number of views.
    """

    views: int
    bytes: int
    about: str
    more: bool

    def __str__(self) -> str:
        size = f"{self.about}{format_bytes(self.bytes)}"
        if not self.views:
            return f"none, 1 view takes {size}"
        noun = "view" if self.views == 1 else "views"
        return f"{self.views} {noun}, {size}{' (or more: no more were tried)' * self.more}"


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What fits a size.

    Attributes:
        bytes: the size.
        fits: title of each preset of the plan to what fits of it.
        parts: title of each part of the records, under the config's preset, of which more views
            fit than of the whole, to what fits of it.
    """

    bytes: int
    fits: dict[str, Fit]
    parts: dict[str, Fit]

    def lines(self) -> Iterator[str]:
        """The budget as text: a line for each preset and part, or one where nothing fits."""
        budget = f"budget {format_bytes(self.bytes)}"
        found = {**self.fits, **self.parts}
        if any(fit.views for fit in found.values()):
            yield f"{budget}, the most views that fit:"
            yield from (f"  {title}: {fit}" for title, fit in found.items())
            return
        title = min(self.fits, key=lambda name: self.fits[name].bytes)
        least = self.fits[title]
        yield (
            f"{budget}: no preset fits; the smallest, {title}, takes {least.about}"
            f"{format_bytes(least.bytes)} with 1 view; raise the budget, lower VIEWS.SCALES or "
            "FIXED_SIZE, or take fewer images (DATASET.MAX_IMAGES)"
        )


def fit_budget(prepared: Prepared, budget: int, samples: Mapping[str, Sample]) -> Budget:
    """Find the most views that fit, by planning them.

    Args:
        prepared: the planned dump, whose own number of views is where the search begins.
        budget: bytes, for the whole cache.
        samples: what some records took under presets, by title.
    """
    planned = prepared.index.num_views
    at_most = max(planned, min(_MOST_VIEWS, MAX_RECORDS // len(prepared.images)))
    plan = lru_cache(maxsize=2)(lambda views: with_views(prepared, views))

    def fit(preset: Preset, sample: Sample | None, part: Mapping[str, Any] | None = None) -> Fit:
        @cache
        def size(views: int) -> PresetEstimate:
            found = with_part(plan(views), part) if part else plan(views)
            return estimate_preset(found, preset, shards_of_buckets(found), sample)

        views = _most(lambda number: size(number).expected_bytes, budget, planned, at_most)
        chosen = size(max(views, 1))
        return Fit(
            views=views, bytes=chosen.expected_bytes, about=chosen.about, more=views == at_most
        )

    chosen = prepared.setup.preset
    title = title_of(chosen)
    fits = {name: fit(one, samples.get(name)) for name, one in candidates(prepared).items()}
    parts = {
        f"{title}, {name}": fit(chosen, samples.get(title), part)
        for name, part in _parts(prepared.setup.stored).items()
    }
    more = {name: one for name, one in parts.items() if one.views > fits[title].views}
    return Budget(bytes=budget, fits=fits, parts=more)


def _parts(stored: Stored) -> dict[str, dict[str, Any]]:
    """What might be left out of the records: title to the keys of CACHE that do so."""
    names = [one.name for one in stored.signals]
    rest = [name for name in names if name != "features"]
    finest, *coarser = stored.levels
    parts: dict[str, dict[str, Any]] = {}
    if rest and rest != names:
        parts["features alone"] = {"SIGNALS": ("features",)}
        parts[f"{' and '.join(rest)} alone"] = {"SIGNALS": tuple(rest)}
    if coarser:
        parts[f"without {finest}"] = {"LEVELS": tuple(coarser)}
    return parts


def _most(size: Callable[[int], int], budget: int, guess: int, at_most: int) -> int:
    """The largest number whose size is within a budget, 0 if there is none.

    Sizes grow nearly in proportion, so that each size guesses the next number well.
    """
    fitting, too_many = 0, at_most + 1
    while too_many - fitting > 1:
        taken = size(guess)
        if taken <= budget:
            fitting = guess
        else:
            too_many = guess
        guess = min(max(budget * guess // taken, fitting + 1), too_many - 1)
    return fitting
