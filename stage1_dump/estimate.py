"""What a dump would write: records, shards, objects, bytes and time, worked out from the plan."""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import timedelta

from dataset.sets import without_objects
from detectors import load_model, teacher_fingerprint
from storage import CacheError, plan_to_json
from storage.location import Location
from storage.progress import format_bytes

from .budget import Budget, fit_budget
from .existing import Existing, look_at
from .prepare import Prepared
from .rates import ReadRate, WriteRate
from .sizes import (
    PresetEstimate,
    Sample,
    candidates,
    estimate_preset,
    sample_of_cache,
    shards_of_buckets,
    title_of,
)


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How fast records are written, and who says so."""

    records_per_sec: float
    source: str


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """What a dump would write; `str` gives a table, `to_json` the numbers.

    Attributes:
        location: of the config.
        preset: title of the config's, in `presets`.
        images, views, records, buckets, shards: counts.
        excluded: images among them that are left out; sizes and times count them in.
        unlabelled: images among them that are of DATASETS.UNLABELED.
        without_objects: images of the other sets that have no object, or crowds alone.
        trains_without_objects: whether a training of this config shows them.
        shard_records: records of a full shard.
        presets: the size under every preset.
        smaller: those of them that would be smaller than the config's, the smallest first.
        done_records: records that the cache at the location holds already.
        free_bytes: space left where the cache would lie; None for an object store.
        rate: records a second; None where it is not known.
        rate_source: where the rate comes from.
        seconds: time for the records that are not done, at that rate.
        read: what training reads under the config's preset, each second.
        write: what the dump writes under it, at that rate; None where it is not known.
        budget: what fits a budget; None where none was given.
        warnings: what would go wrong.
    """

    location: str
    preset: str
    images: int
    excluded: int
    unlabelled: int
    without_objects: int
    trains_without_objects: bool
    views: int
    records: int
    buckets: int
    shards: int
    shard_records: int
    presets: dict[str, PresetEstimate]
    smaller: list[str]
    done_records: int
    free_bytes: int | None
    rate: float | None
    rate_source: str
    seconds: float | None
    read: ReadRate
    write: WriteRate | None
    budget: Budget | None
    warnings: list[str]

    def to_json(self) -> str:
        """The estimate as one JSON object."""
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield (
            f"{self.images:,} images x {self.views} views = {self.records:,} records in "
            f"{self.buckets:,} buckets and {self.shards:,} shards of {self.shard_records}, for "
            f"{self.location}"
        )
        if self.excluded:
            yield f"left out: {self.excluded:,} images (DATASET.EXCLUDE); all numbers count them"
        if self.unlabelled:
            yield f"unlabelled: {self.unlabelled:,} images (DATASETS.UNLABELED)"
        if self.without_objects:
            unused = " are not trained on (DATALOADER.FILTER_EMPTY_ANNOTATIONS)"
            yield f"without objects: {self.without_objects:,} images" + (
                "" if self.trains_without_objects else unused
            )
        for name, preset in self.presets.items():
            chosen = " (CACHE.PRESET)" if name == self.preset else ""
            yield from preset.lines(f"{name}{chosen}", self.records)
        if self.smaller:
            sizes = [
                f"{name} ({format_bytes(self.presets[name].expected_bytes)})"
                for name in self.smaller
            ]
            yield f"smaller than {self.preset} here: {', '.join(sizes)}"
        if self.done_records:
            yield f"done already: {self.done_records:,} records"
        if self.free_bytes is not None:
            yield f"free at the location: {format_bytes(self.free_bytes)}"
        if self.rate is not None and self.seconds is not None:
            time = timedelta(seconds=round(self.seconds))
            yield f"time: {time} at {self.rate:.1f} records/s ({self.rate_source})"
        about = self.presets[self.preset].about
        if self.write is not None:
            yield self.write.line(about)
        yield self.read.line(about)
        if self.budget is not None:
            yield from self.budget.lines()
        yield from (f"warning: {text}" for text in self.warnings)


def estimate(
    prepared: Prepared,
    *,
    rate: Rate | None = None,
    samples: Mapping[str, Sample] | None = None,
    images_per_sec: float = 100.0,
    budget_bytes: int | None = None,
) -> Estimate:
    """Work out what a dump would write; writes nothing, and opens neither images nor weights.

    What lies at CACHE.LOCATION already is taken into account, unless it is an object store:
    planning needs no network.

    Args:
        prepared: the planned dump.
        rate: of all ranks together; without it, that of the cache's own log.
        samples: what some records took under presets, by title; of the config's preset, the
            records that are in the cache already tell it.
        images_per_sec: that training shows, on all ranks together.
        budget_bytes: what the whole cache may take; without it, no other plan is made.
    """
    index = prepared.index
    shards = shards_of_buckets(prepared)
    title = title_of(prepared.setup.preset)
    samples = dict(samples or {})
    existing, warnings = _look(prepared)
    done = existing.status.done_records if existing else 0
    if existing and (sample := sample_of_cache(prepared, existing.sizes)):
        samples[title] = sample
    presets = {
        name: estimate_preset(prepared, preset, shards, samples.get(name))
        for name, preset in candidates(prepared).items()
    }
    if rate is None and existing and existing.status.rate:
        rate = Rate(records_per_sec=existing.status.rate, source="log of this cache")
    chosen = presets[title]
    location = prepared.settings.cache.location
    read = ReadRate.of(chosen, images_per_sec, commits=int(shards.sum()))
    write = WriteRate.of(chosen, rate.records_per_sec, records=len(index)) if rate else None
    free = Location(location).free_bytes()
    needed = chosen.expected_bytes - (sum(existing.sizes.values()) if existing else 0)
    if free is not None and needed > free:
        warnings.append(
            f"preset {title} needs {format_bytes(needed)}, but only "
            f"{format_bytes(free)} are free at {location}"
        )
    return Estimate(
        location=location,
        preset=title,
        images=len(prepared.images),
        excluded=len(prepared.excluded),
        unlabelled=sum(len(one.images) for one in prepared.sets if not one.labelled),
        without_objects=without_objects(prepared.sets),
        trains_without_objects=not prepared.setup.cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS,
        views=index.num_views,
        records=len(index),
        buckets=len(index.bucket_names),
        shards=int(shards.sum()),
        shard_records=prepared.shard_records,
        presets=presets,
        smaller=_smaller(presets, title),
        done_records=done,
        free_bytes=free,
        rate=rate.records_per_sec if rate else None,
        rate_source=rate.source if rate else "",
        seconds=(len(index) - done) / rate.records_per_sec if rate else None,
        read=read,
        write=write,
        budget=fit_budget(prepared, budget_bytes, samples) if budget_bytes else None,
        warnings=warnings,
    )


def _smaller(presets: Mapping[str, PresetEstimate], title: str) -> list[str]:
    """Presets that take less than the one of that title, the smallest first."""
    sizes = {name: preset.expected_bytes for name, preset in presets.items()}
    return sorted((name for name in sizes if sizes[name] < sizes[title]), key=sizes.__getitem__)


def _look(prepared: Prepared) -> tuple[Existing | None, list[str]]:
    """The planned cache where it exists already; else why what lies there is not it."""
    location = prepared.settings.cache.location
    place = Location(location)
    if not place.is_local:
        try:
            place.reach(once=True)
        except (CacheError, ValueError, ModuleNotFoundError) as error:
            # It may be there: a right to write need not be one to list.
            return None, [f"CACHE.LOCATION could not be looked at: {error}"]
        return None, []
    try:
        existing = look_at(prepared)
    except CacheError as error:
        return None, [str(error)]
    if existing is None or not existing.begun:  # what is not begun, a dump begins again
        return None, []
    if existing.differences:
        other = "; ".join(existing.differences)
        return None, [f"{location} is another cache than the one asked for: {other}"]
    if existing.status.views > prepared.index.num_views:
        keep = prepared.index.num_views
        remedy = f"python -m storage drop-views {shlex.quote(str(location))} --keep {keep}"
        views = existing.status.views
        return None, [f"{location} holds {views} views, more than the plan; see: {remedy}"]
    return existing, []


def plan_text(prepared: Prepared) -> str:
    """The plan as JSON for `python -m storage verify --expect`.

    It states what the config decides. Left out is what only a dump knows: the numerics of its
    machine, and the digest of the teacher where its weights are not at hand.
    """
    cfg = prepared.teacher_cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    has_weights = os.path.exists(cfg.MODEL.WEIGHTS)
    teacher = teacher_fingerprint(load_model(cfg), cfg) if has_weights else {}
    plan = plan_to_json(prepared.manifest(teacher=teacher, numerics={}), prepared.index)
    unknown = ["numerics"] if has_weights else ["numerics", "teacher"]
    stated = {name: value for name, value in plan["identity"].items() if name not in unknown}
    # The id covers the whole identity, so it is not known either.
    return json.dumps({**plan, "identity": stated, "cache_id": ""}, indent=1) + "\n"
