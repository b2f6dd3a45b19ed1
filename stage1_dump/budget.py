"""How many views of the planned images fit a given size, under every preset."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, lru_cache

from storage import Preset
from storage.progress import format_bytes
from storage.schema import MAX_RECORDS

from .prepare import Prepared, with_views
from .sizes import PresetEstimate, Sample, candidates, estimate_preset, shards_of_buckets

# An epoch shows one view of each image, and few trainings have more epochs.
_MOST_VIEWS = 100


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What fits of one preset.

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
    """

    bytes: int
    fits: dict[str, Fit]

    def lines(self) -> Iterator[str]:
        """The budget as text: a line for each preset, or one where nothing fits."""
        budget = f"budget {format_bytes(self.bytes)}"
        if any(fit.views for fit in self.fits.values()):
            yield f"{budget}, the most views that fit:"
            yield from (f"  {title}: {fit}" for title, fit in self.fits.items())
            return
        title = min(self.fits, key=lambda name: self.fits[name].bytes)
        least = self.fits[title]
        yield (
            f"{budget}: no preset fits; the smallest, {title}, takes {least.about}"
            f"{format_bytes(least.bytes)} with 1 view; raise the budget, lower VIEWS.SCALES, or "
            "take fewer images (DATASET.MAX_IMAGES)"
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

    def fit(preset: Preset, sample: Sample | None) -> Fit:
        @cache
        def size(views: int) -> PresetEstimate:
            found = plan(views)
            return estimate_preset(found, preset, shards_of_buckets(found), sample)

        views = _most(lambda number: size(number).expected_bytes, budget, planned, at_most)
        chosen = size(max(views, 1))
        return Fit(
            views=views, bytes=chosen.expected_bytes, about=chosen.about, more=views == at_most
        )

    presets = candidates(prepared.setup.preset)
    return Budget(
        bytes=budget, fits={name: fit(one, samples.get(name)) for name, one in presets.items()}
    )


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
