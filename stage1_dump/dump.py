"""The dump job: the teacher over every planned view, shard by shard, into the cache.

    plan -> a thread claims shards ahead -> worker processes render their views
         -> teacher -> encode on the device -> copy to the host (beside the next forward)
         -> threads compress, write and commit, while the next shards are computed

It starts and resumes in the same way: what is committed is skipped. It may be killed at any
moment, and any number of ranks may work on one cache.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import chain

from detectron2.config import CfgNode

from detectors import teacher_fingerprint
from detectors.pinned import kept_bytes, naming_pinning
from storage import CacheWriter, ClaimLostError, ShardId
from storage.progress import Progress, format_bytes

from .arrays import ShardArrays, copied_bytes
from .compute import BatchComputer
from .existing import note_annotations, require_same_cache
from .feed import ShardFeed
from .images import Failure, ImageBatch, RecordImages, make_loader
from .numerics import fixed_numerics
from .prepare import Prepared, prepare
from .profile import CLAIM, IMAGES, WRITE, Profile, Shares
from .ranks import Claims, Rank, Waiting, current_rank, pick_device
from .runlog import RunLog
from .teacher import Teacher, load_teacher
from .unreadable import UnreadableList, require_written_images
from .writing import ShardWriters

logger = logging.getLogger(__name__)

# How often to look whether other ranks have finished or given up the shards that they hold.
POLL_SEC = 2.0


@dataclass(frozen=True, kw_only=True)
class DumpReport:
    """What one rank did.

    Attributes:
        shards, records: what it wrote.
        elapsed_sec: time from the first claim to the last commit.
        cpu_sec: CPU time of this process meanwhile, without that of its image workers.
        failures: views that it could not render, of shards that no other rank wrote either.
        remedy: how to leave their images out; empty if they could not be listed.
        excluded: images that were left out.
        shares: where the time went.
    """

    shards: int
    records: int
    elapsed_sec: float
    cpu_sec: float
    failures: tuple[Failure, ...]
    remedy: str
    excluded: int
    shares: Shares

    def __str__(self) -> str:
        rate = self.records / max(self.elapsed_sec, 1e-9)
        lines = [
            f"{self.records:,} records in {self.shards:,} shards written in "
            f"{timedelta(seconds=round(self.elapsed_sec))} ({rate:.1f} records/s)"
        ]
        if self.failures:
            lines.append(f"{len(self.failures)} views could not be rendered:")
            lines += [f"  {failure}" for failure in self.failures]
            lines.append("their shards are missing; mend the images and run again")
            lines += filter(None, [self.remedy])
        if self.excluded:
            lines.append(f"{self.excluded} images are left out (DATASET.EXCLUDE)")
        return "\n".join(lines)


def run(cfg: CfgNode, *, profiled: bool = False) -> DumpReport:
    """Dump, on this rank, until the cache is complete or nothing more can be done.

    Args:
        cfg: the config.
        profiled: on a GPU, wait at the end of each step, so that the report's shares are right.

    Raises:
        ValueError, FileNotFoundError: wrong config, annotations or weights; before any work.
        CacheError: the cache at CACHE.LOCATION is another one, is full or cannot be reached.
        DumpError: the device is out of memory.
        WorkerError: an image worker died, or has too little memory or files.
    """
    rank = current_rank(os.environ)
    device = pick_device(cfg.MODEL.DEVICE, rank)
    prepared = prepare(cfg)
    require_same_cache(prepared)
    require_written_images(prepared)
    with fixed_numerics(prepared.settings.teacher, device) as numerics:
        teacher = load_teacher(
            prepared.setup.stored,
            device,
            precision=prepared.settings.teacher.precision,
            codec=prepared.codec(),
        )
        fingerprint = teacher_fingerprint(teacher.model, prepared.teacher_cfg)
        manifest = prepared.manifest(teacher=fingerprint, numerics=numerics)
        writer = CacheWriter(prepared.settings.cache.location, manifest, prepared.index)
        profile = Profile(device if profiled else None)
        with RunLog(writer, rank) as log, Claims(writer, rank.owner) as claims:
            log.note_config(cfg.dump())
            note_annotations(prepared, writer)
            job = DumpJob(
                prepared, teacher, writer, claims, rank, log, profile, cfg.DATALOADER.NUM_WORKERS
            )
            return job.run()


class DumpJob:
    """One rank's share of a dump.

    What is in memory at once: `CACHE.WRITERS` + 1 shards of codes (beside a GPU page-locked, each
    array rounded up to a power of two), for each writer the compressed form of an array as it is
    put (of an object store, which takes several at once, all arrays once more), and the views of
    2 * `DATALOADER.NUM_WORKERS` batches.
    """

    def __init__(
        self,
        prepared: Prepared,
        teacher: Teacher,
        writer: CacheWriter,
        claims: Claims,
        rank: Rank,
        log: RunLog,
        profile: Profile,
        num_workers: int,
    ) -> None:
        """Args: what to dump, with what, to where, as which rank, with how many image workers."""
        self._teacher = teacher
        self._writer = writer
        self._claims = claims
        self._rank = rank
        self._log = log
        self._profile = profile
        self._num_writers = prepared.settings.cache.writers
        self._geometries = {one.name: one for one in prepared.geometries}
        self._feed = ShardFeed(
            writer,
            claims,
            rank,
            prepared.geometries,
            batch=prepared.settings.teacher.batch,
            profile=profile,
        )
        self._loader = make_loader(
            RecordImages(prepared),
            self._feed,
            batch=prepared.settings.teacher.batch,
            num_workers=num_workers,
            device=teacher.device,
            forked=writer.location.is_local,
        )
        self._computer = BatchComputer(teacher, profile)
        self._excluded = len(prepared.excluded)
        self._unreadable = UnreadableList(prepared)
        self._failed: dict[ShardId, list[Failure]] = {}

    def run(self) -> DumpReport:
        """Take free shards until every shard is committed or has failed here."""
        missing = self._writer.missing()
        total = self._count_missing()
        self._announce(missing, total)
        if self._excluded:
            logger.info("%d images are left out (DATASET.EXCLUDE)", self._excluded)
        alone = self._rank.world_size == 1
        self._progress = Progress(
            "dump",
            total=total,
            unit="records",
            shown=self._rank.local == 0,
            count_done=None if alone else lambda: total - self._count_missing(),
        )
        waiting = Waiting(self._writer)
        start, cpu_start = time.monotonic(), time.process_time()
        device = self._teacher.device
        writers = ShardWriters(self._write, self._profile, device, self._num_writers)
        with self._progress, writers as self._writers:
            while missing:
                if not self._pass(missing):
                    waiting.say(missing)
                    time.sleep(POLL_SEC)
                    self._progress.update(0)
                missing = [s for s in self._writer.missing() if s not in self._failed]
        elapsed = time.monotonic() - start
        failures = self._failures()
        return DumpReport(
            shards=self._log.shards,
            records=self._log.records,
            elapsed_sec=elapsed,
            cpu_sec=time.process_time() - cpu_start,
            failures=tuple(failures),
            remedy=self._unreadable.remedy({one.image_id: one.message for one in failures}),
            excluded=self._excluded,
            shares=self._profile.shares(elapsed),
        )

    def _failures(self) -> list[Failure]:
        """Those of shards that no other rank wrote either."""
        missing = set(self._writer.missing()) if self._failed else ()
        return [one for shard in self._failed if shard in missing for one in self._failed[shard]]

    def _announce(self, missing: list[ShardId], total: int) -> None:
        on_gpu = self._teacher.device.type == "cuda"
        logger.info(
            "rank %d of %d on %s: %d shards with %d records to write, up to %s of them in %s",
            self._rank.number, self._rank.world_size, self._teacher.device, len(missing), total,
            format_bytes(self._bytes_in_memory(missing, page_locked=on_gpu)),
            "page-locked memory" if on_gpu else "memory",
        )  # fmt: skip

    def _bytes_in_memory(self, missing: list[ShardId], *, page_locked: bool) -> int:
        """Codes of the largest shards that may be in memory together, and what that takes."""
        shards = [
            (self._writer.manifest.arrays[shard.bucket], len(self._writer.records_of(shard)))
            for shard in missing
        ]
        if page_locked:
            blocks = [[size * count for size in copied_bytes(arrays)] for arrays, count in shards]
            return kept_bytes(blocks, self._num_writers + 1)
        sizes = [sum(one.num_bytes for one in arrays) * count for arrays, count in shards]
        return sum(sorted(sizes, reverse=True)[: self._num_writers + 1])

    def _count_missing(self) -> int:
        """Records that no rank has committed."""
        return sum(len(self._writer.records_of(shard)) for shard in self._writer.missing())

    def _pass(self, missing: list[ShardId]) -> int:
        """Work through the shards that nobody else holds; return how many there were."""
        self._feed.offer(missing)
        taken = 0
        loaded = naming_pinning(iter(self._loader), "lower DATALOADER.NUM_WORKERS")
        while (first := self._next(loaded)) is not None:
            shard = self._feed.claimed.popleft()
            rest = (self._next(loaded) for _ in range(self._feed.num_batches(shard) - 1))
            self._compute(shard, chain([first], rest))
            taken += 1
        self._computer.drain()
        self._writers.finish()
        return taken

    def _next(self, loaded: Iterator[ImageBatch]) -> ImageBatch | None:
        with self._profile.step(IMAGES):
            return next(loaded, None)

    def _compute(self, shard: ShardId, batches: Iterator[ImageBatch | None]) -> None:
        """Have the batches of one claimed shard computed, and then the shard written."""
        arrays = ShardArrays(
            self._writer.manifest.arrays[shard.bucket],
            len(self._writer.records_of(shard)),
            self._teacher.device,
        )
        write = partial(self._writers.submit, shard, arrays)
        last = self._feed.num_batches(shard) - 1
        failures: list[Failure] = []
        for number, batch in enumerate(batches):
            assert batch is not None, "the loader ended within a shard"
            failures += batch.failures
            # Once a view has failed, the shard's other batches are only looked through for more.
            if not failures:
                geometry = self._geometries[shard.bucket]
                finished = write if number == last else None
                self._computer.submit(batch, geometry, arrays, finished)
        if failures:
            self._give_up(shard, failures)

    def _give_up(self, shard: ShardId, failures: list[Failure]) -> None:
        for failure in failures:
            logger.error("shard %s is not written: %s", shard, failure)
        self._unreadable.add({one.image_id: one.message for one in failures})
        self._failed[shard] = failures
        self._claims.drop(shard)

    def _write(self, shard: ShardId, arrays: ShardArrays) -> None:
        """Write and commit, in a thread of its own."""
        try:
            with self._profile.step(WRITE):
                self._writer.write(shard, arrays.finish())
        except ClaimLostError as error:
            # This rank was taken for dead. The other one's result is the same, byte for byte.
            logger.warning("%s", error)
        else:
            records = len(self._writer.records_of(shard))
            self._log.count(records)
            self._progress.update(records)
        finally:
            with self._profile.step(CLAIM):
                self._claims.drop(shard)
