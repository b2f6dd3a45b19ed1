"""The proof that a cache belongs to its teacher: it is run again on a sample, and compared.

Digests prove that a cache holds what was written; only the teacher can say that the right thing
was written. It runs the very batches of the dump, because a batch's size moves the last bits. On
the dump's kind of machine and libraries every code must then be the same bit for bit; elsewhere
what the codes decode to must agree within the tolerances of `agreement`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from numpy.typing import NDArray
from torch import Tensor

from configs.nodes import TeacherConfig
from dataset.likeness import compare_samples
from detectors import teacher_fingerprint
from detectors.identity import differing_facts, dump_differences
from detectors.stored import Stored
from storage import CacheReader
from storage.progress import Progress
from storage.schema import PIXELS_CRC, PIXELS_SAMPLE

from .agreement import NOISE, Distance, distances_in_bits, distances_in_value
from .images import Failure, ImageBatch, RecordImages, make_loader
from .numerics import fixed_numerics
from .prepare import Prepared, prepare
from .ranks import Rank, pick_device
from .teacher import Teacher, load_teacher, naming_the_batch


@dataclass(frozen=True, kw_only=True)
class Mismatch:
    """A field of a record that is not what the teacher says now; see `agreement.Distance`."""

    record: int
    image_id: int
    view: int
    field: str
    difference: float
    tolerance: float

    def __str__(self) -> str:
        return (
            f"record {self.record} (image {self.image_id}, view {self.view}): {self.field} differs "
            f"by up to {self.difference:.4g}, tolerance {self.tolerance:.4g}"
        )


@dataclass(kw_only=True)
class CheckReport:
    """What a check found; `str` gives lines, `to_json` the numbers.

    Attributes:
        location: of the cache.
        records: how many were compared.
        missing_shards: shards that are not committed, and so were not drawn from.
        excluded: images that are left out, by the cache or the config, and were not compared.
        other_numerics: what differs from the machine of the dump; empty: compared bit for bit.
        identity: fields of the manifest that are not those of the config.
        largest: field to the largest difference found, and the tolerance there.
        mismatches: what does not agree.
        failures: views that cannot be rendered now; the rest of their batch was not compared.
        tolerated: views with other pixels, let through by `CACHE.PIXELS tolerate`.
    """

    location: str
    missing_shards: int
    excluded: int
    other_numerics: list[str]
    identity: list[str]
    records: int = 0
    largest: dict[str, tuple[float, float]] = field(default_factory=dict)
    mismatches: list[Mismatch] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    tolerated: int = 0

    @property
    def agrees(self) -> bool:
        """Whether the cache belongs to the teacher of the config, as far as was looked."""
        return not (self.identity or self.mismatches or self.failures)

    def to_json(self) -> str:
        """The report as one JSON object."""
        return json.dumps({**asdict(self), "agrees": self.agrees}, indent=1)

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        yield from (f"not of this config: {line}" for line in self.identity)
        yield from (f"not as computed now: {line}" for line in self.mismatches)
        yield from (f"not rendered: {line}" for line in self.failures)
        for name, (difference, tolerance) in self.largest.items():
            yield f"{name:16} largest difference {difference:.4g}, tolerance {tolerance:.4g}"
        if self.missing_shards:
            yield f"{self.missing_shards} shards are not committed, and were left out"
        if self.excluded:
            yield f"{self.excluded} images are left out (DATASET.EXCLUDE), and were not compared"
        if self.tolerated:
            yield f"{self.tolerated} views have other pixels (CACHE.PIXELS tolerate)"
        if self.other_numerics:
            yield f"by value, because of other numerics: {'; '.join(self.other_numerics)}"
        how = "by value" if self.other_numerics else "bit for bit"
        if self.mismatches or self.failures:
            verdict = "DO NOT all agree with the teacher"
        else:
            verdict = "agree with the teacher"
            verdict += ", but the cache IS NOT of this config" if self.identity else ""
        yield f"{self.location}: {self.records} records compared {how}; they {verdict}"


def check(cfg: CfgNode, *, sample: int, seed: int) -> CheckReport:
    """Run the teacher again on records of the cache at `CACHE.LOCATION`.

    Args:
        cfg: the config that the cache was dumped with.
        sample: compare at least so many records; whole teacher batches are drawn.
        seed: of the drawing.

    Raises:
        FileNotFoundError: no cache there, or annotations or weights are missing.
        ValueError: wrong config; a teacher whose outputs do not fit the cache; nothing committed.
        CacheError: the cache is damaged.
        DumpError: the device is out of memory.
    """
    prepared = prepare(cfg)
    reader = CacheReader(prepared.settings.cache.location)
    excluded = {*prepared.excluded, *reader.manifest.excluded}
    prepared = replace(prepared, index=reader.index, excluded=tuple(sorted(excluded)))
    device = pick_device(cfg.MODEL.DEVICE, Rank())
    settings = _numerics_of(reader, prepared.settings.teacher)
    with fixed_numerics(settings, device) as numerics:
        teacher = load_teacher(
            _stored_of(reader, prepared), device, precision=settings.precision, codec=reader.codec
        )
        fingerprint = teacher_fingerprint(teacher.model, prepared.teacher_cfg)
        wanted = prepared.manifest(teacher=fingerprint, numerics=numerics).identity
        of_machine = {"numerics": wanted.pop("numerics")}
        report = CheckReport(
            location=str(reader.location),
            missing_shards=len(reader.missing()),
            excluded=len(excluded),
            other_numerics=[str(one) for one in differing_facts(reader.manifest, of_machine)],
            identity=dump_differences(reader, wanted, prepared.images, prepared.setup.augmentation),
        )
        batches = _draw(reader, prepared, settings.batch, sample=sample, seed=seed)
        _Check(prepared, reader, teacher, report).run(batches, cfg.DATALOADER.NUM_WORKERS)
    return report


def _numerics_of(reader: CacheReader, ours: TeacherConfig) -> TeacherConfig:
    """The config's teacher, run as the cache says that it ran: same batch, same precision."""
    numerics = reader.manifest.numerics
    try:
        return replace(ours, batch=numerics["batch"], precision=numerics["precision"])
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{reader.location}: its numerics do not say how the teacher ran ({error})"
        ) from error


def _stored_of(reader: CacheReader, prepared: Prepared) -> Stored:
    """The signals and levels that the cache holds, whatever the config names."""
    ours, manifest = prepared.setup.stored, reader.manifest
    return Stored.of(
        ours.cfg, ours.family, signals=tuple(manifest.signals), levels=tuple(manifest.levels)
    )


def _draw(
    reader: CacheReader, prepared: Prepared, batch: int, *, sample: int, seed: int
) -> list[list[int]]:
    """Draw whole batches of the dump at random until they hold `sample` records."""
    table = reader.table
    missing = set(reader.missing())
    batches = [
        records[start : start + batch]
        for records in (table.records_of(one) for one in table.shards if one not in missing)
        for start in range(0, len(records), batch)
    ]
    # An image that the annotations lack has no file name; the fingerprint has named the change.
    known = np.isin(reader.index.image_id, prepared.images.ids)
    written = ~np.isin(reader.index.image_id, prepared.excluded)
    batches = [one for one in batches if known[one].all() and written[one].any()]
    if not batches:
        raise ValueError(f"{reader.location}: no committed record of these images to compare")
    order = np.random.default_rng(seed).permutation(len(batches))
    ends = np.cumsum([written[batches[number]].sum() for number in order])
    count = min(int(np.searchsorted(ends, sample)) + 1, len(batches))
    return [batches[number].tolist() for number in order[:count]]


class _Check:
    """One run over the drawn batches, filling a report."""

    def __init__(
        self, prepared: Prepared, reader: CacheReader, teacher: Teacher, report: CheckReport
    ) -> None:
        self._prepared = prepared
        self._reader = reader
        self._teacher = teacher
        self._report = report

    def run(self, batches: list[list[int]], num_workers: int) -> None:
        loader = make_loader(
            RecordImages(self._prepared),
            batches,
            batch=max(map(len, batches)),
            num_workers=num_workers,
            device=self._teacher.device,
            forked=self._reader.location.is_local,
        )
        total = sum(map(len, batches))
        with Progress("check", total=total, unit="records") as progress:
            for records, batch in zip(batches, loader, strict=True):
                self._compare_batch(records, batch)
                progress.update(len(records))

    def _compare_batch(self, records: Sequence[int], batch: ImageBatch) -> None:
        if batch.failures:
            # Without one of its images a batch is another batch.
            self._report.failures += batch.failures
            return
        geometry = self._reader.geometry_of(records[0])
        with naming_the_batch(len(records), geometry):
            outputs = self._teacher.run(batch.images(self._teacher.device))
            codes = self._teacher.encode(outputs, geometry)
        now = {name: code.cpu().numpy() for name, code in codes.items()}
        # Float copies of every signal: for a comparison by value alone.
        live = self._teacher.stored.values(outputs) if self._report.other_numerics else {}
        written = [records[position] for position in batch.written]
        for number, (record, stored) in enumerate(
            zip(written, self._reader.read_many(written), strict=True)
        ):
            position = batch.written[number]
            one = {name: values[position : position + 1].cpu() for name, values in live.items()}
            computed = {name: codes[position] for name, codes in now.items()}
            computed |= {name: pixels[number] for name, pixels in batch.pixels.items()}
            self._compare(record, stored, computed, one)

    def _compare(
        self,
        record: int,
        stored: Mapping[str, NDArray[Any]],
        now: Mapping[str, NDArray[Any]],
        live: Mapping[str, Tensor],
    ) -> None:
        self._report.records += 1
        for distance in self._distances(record, stored, now, live):
            known = self._report.largest.get(distance.field)
            if known is None or not distance.difference <= known[0]:
                self._report.largest[distance.field] = (distance.difference, distance.tolerance)
            if distance.agrees:
                continue
            if self._tolerates(distance.field, stored, now):
                self._report.tolerated += distance.field == PIXELS_CRC
                continue
            self._report.mismatches.append(
                Mismatch(
                    record=record,
                    image_id=int(self._reader.index.image_id[record]),
                    view=int(self._reader.index.view[record]),
                    field=distance.field,
                    difference=distance.difference,
                    tolerance=distance.tolerance,
                )
            )

    def _distances(
        self,
        record: int,
        stored: Mapping[str, NDArray[Any]],
        now: Mapping[str, NDArray[Any]],
        live: Mapping[str, Tensor],
    ) -> Iterator[Distance]:
        if not self._report.other_numerics:
            return distances_in_bits(stored, now)
        return distances_in_value(
            stored,
            now,
            live,
            self._teacher.codec,
            self._reader.geometry_of(record),
            NOISE[self._teacher.precision],
        )

    def _tolerates(
        self, field: str, stored: Mapping[str, NDArray[Any]], now: Mapping[str, NDArray[Any]]
    ) -> bool:
        """Whether the field tells of pixels, and they may differ as much as they do."""
        return (
            self._prepared.settings.cache.pixels == "tolerate"
            and field in (PIXELS_CRC, PIXELS_SAMPLE)
            and compare_samples(stored[PIXELS_SAMPLE], now[PIXELS_SAMPLE]).is_tolerable
        )
