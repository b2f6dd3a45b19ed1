"""The dump job: the teacher over every planned view, shard by shard, into the cache.

    plan -> claim a shard -> workers render its views -> teacher -> encode on the device -> host
         -> a background thread writes and commits, while the next shard is computed

It starts and resumes in the same way: what is committed is skipped. It may be killed at any
moment, and any number of ranks may work on one cache.
"""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from itertools import chain

from detectron2.config import CfgNode

from dataset.annotations import require_images
from detectors import teacher_fingerprint
from storage import CacheWriter, ClaimLostError, ShardId

from .arrays import ShardArrays
from .errors import DumpError
from .existing import require_same_cache
from .images import Failure, ImageBatch, RecordImages, make_loader
from .numerics import fixed_numerics
from .prepare import Prepared, prepare
from .progress import DumpProgress
from .ranks import Claims, Rank, current_rank, pick_device, rotated
from .runlog import RunLog
from .teacher import Teacher, load_teacher, naming_the_batch

logger = logging.getLogger(__name__)

# How often to look whether other ranks have finished or given up the shards that they hold.
POLL_SEC = 2.0


@dataclass(frozen=True, kw_only=True)
class DumpReport:
    """What one rank did.

    Attributes:
        shards, records: what it wrote.
        elapsed_sec: time from the first claim to the last commit.
        failures: views that could not be rendered; their shards are not in the cache.
    """

    shards: int
    records: int
    elapsed_sec: float
    failures: tuple[Failure, ...]

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
        return "\n".join(lines)


def run(cfg: CfgNode) -> DumpReport:
    """Dump, on this rank, until the cache is complete or nothing more can be done.

    Raises:
        ValueError, FileNotFoundError: wrong config, annotations or weights; before any work.
        CacheError: the cache at CACHE.LOCATION is another one, is full or cannot be reached.
        DumpError: the device is out of memory, or a worker process died.
    """
    rank = current_rank(os.environ)
    device = pick_device(cfg.MODEL.DEVICE, rank)
    prepared = prepare(cfg)
    require_same_cache(prepared)
    require_images(prepared.images, prepared.image_root)
    with fixed_numerics(prepared.settings.teacher, device) as numerics:
        teacher = load_teacher(
            prepared.teacher_cfg,
            device,
            precision=prepared.settings.teacher.precision,
            preset=prepared.preset,
        )
        fingerprint = teacher_fingerprint(teacher.model, teacher.cfg)
        manifest = prepared.manifest(teacher=fingerprint, numerics=numerics)
        writer = CacheWriter(prepared.settings.cache.location, manifest, prepared.index)
        log = RunLog(writer, rank)
        log.note_config(cfg.dump())
        with Claims(writer, rank.owner) as claims:
            job = DumpJob(prepared, teacher, writer, claims, rank, log, cfg.DATALOADER.NUM_WORKERS)
            return job.run()


class ClaimedBatches:
    """Batches of record numbers of the shards that this rank gets, claimed as the loader asks.

    The loader asks a few batches ahead, so the workers do not idle between two shards.
    """

    def __init__(self, writer: CacheWriter, claims: Claims, batch: int) -> None:
        """Args: the cache, this rank's claims, and records in a teacher forward."""
        self._writer = writer
        self._claims = claims
        self._batch = batch
        self.wanted: list[ShardId] = []
        self.claimed: deque[ShardId] = deque()

    def __iter__(self) -> Iterator[list[int]]:
        for shard in self.wanted:
            if self._claims.take(shard):
                self.claimed.append(shard)
                records = self._writer.records_of(shard).tolist()
                for start in range(0, len(records), self._batch):
                    yield records[start : start + self._batch]

    def num_batches(self, shard: ShardId) -> int:
        """Teacher forwards of a shard."""
        return -(-len(self._writer.records_of(shard)) // self._batch)


class DumpJob:
    """One rank's share of a dump."""

    def __init__(
        self,
        prepared: Prepared,
        teacher: Teacher,
        writer: CacheWriter,
        claims: Claims,
        rank: Rank,
        log: RunLog,
        num_workers: int,
    ) -> None:
        """Args: what to dump, with what, to where, as which rank, with how many image workers."""
        self._teacher = teacher
        self._writer = writer
        self._claims = claims
        self._rank = rank
        self._geometries = {one.name: one for one in prepared.geometries}
        self._batches = ClaimedBatches(writer, claims, prepared.settings.teacher.batch)
        self._loader = make_loader(
            RecordImages(prepared.images, prepared.image_root, prepared.index, teacher.cfg),
            self._batches,
            num_workers=num_workers,
            device=teacher.device,
            forked="://" not in prepared.settings.cache.location,
        )
        self._failures: list[Failure] = []
        self._failed: set[ShardId] = set()
        self._shards = self._records = 0
        self._writing: Future[None] | None = None
        self._log = log

    def run(self) -> DumpReport:
        """Take free shards until every shard is committed or has failed here."""
        missing = self._writer.missing()
        total = self._count_missing()
        self._announce(missing, total)
        self._progress = DumpProgress(
            total,
            shown=self._rank.local == 0,
            count_missing=self._count_missing if self._rank.world_size > 1 else None,
        )
        start = time.monotonic()
        try:
            with ThreadPoolExecutor(1, thread_name_prefix="write") as self._executor:
                while missing:
                    if not self._pass(missing):
                        logger.info("waiting for %d shards of other ranks", len(missing))
                        time.sleep(POLL_SEC)
                    missing = [s for s in self._writer.missing() if s not in self._failed]
        finally:
            self._progress.close()
            self._log.update(self._shards, self._records, ended=True)
        return DumpReport(
            shards=self._shards,
            records=self._records,
            elapsed_sec=time.monotonic() - start,
            failures=tuple(self._failures),
        )

    def _announce(self, missing: list[ShardId], total: int) -> None:
        logger.info(
            "rank %d of %d on %s: %d shards with %d records to write",
            self._rank.number, self._rank.world_size, self._teacher.device, len(missing), total,
        )  # fmt: skip

    def _count_missing(self) -> int:
        """Records that no rank has committed."""
        return sum(len(self._writer.records_of(shard)) for shard in self._writer.missing())

    def _pass(self, missing: list[ShardId]) -> int:
        """Work through the shards that nobody else holds; return how many there were."""
        self._batches.wanted = rotated(missing, self._rank)
        taken = 0
        loaded = iter(self._loader)
        while (first := self._next(loaded)) is not None:
            shard = self._batches.claimed.popleft()
            rest = (self._next(loaded) for _ in range(self._batches.num_batches(shard) - 1))
            self._compute(shard, first, rest)
            taken += 1
        self._finish_write()
        return taken

    def _next(self, loaded: Iterator[ImageBatch]) -> ImageBatch | None:
        try:
            return next(loaded, None)
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise DumpError(
                f"an image worker died ({str(error).splitlines()[0]}); it may have been short of "
                "memory: lower DATALOADER.NUM_WORKERS, or enlarge /dev/shm"
            ) from error

    def _compute(
        self, shard: ShardId, first: ImageBatch, rest: Iterator[ImageBatch | None]
    ) -> None:
        """Run the teacher over the batches of one claimed shard, and have the result written."""
        records = len(self._writer.records_of(shard))
        arrays = ShardArrays(records, self._teacher.device)
        failures: list[Failure] = []
        for batch in chain([first], rest):
            assert batch is not None, "the loader ended within a shard"
            failures += batch.failures
            # Once a view has failed, the shard's other batches are only looked through for more.
            if not failures:
                geometry = self._geometries[shard.bucket]
                with naming_the_batch(len(batch.images), geometry):
                    codes = self._teacher.encode(self._teacher.run(batch.images), geometry)
                arrays.append(codes, batch.crc32c)
        if failures:
            self._give_up(shard, failures)
            return
        # One shard at a time is written: two are in memory, and no third begins before this.
        self._finish_write()
        self._writing = self._executor.submit(self._write, shard, arrays, records)

    def _give_up(self, shard: ShardId, failures: list[Failure]) -> None:
        for failure in failures:
            logger.error("shard %s is left out: %s", shard, failure)
        self._failures += failures
        self._failed.add(shard)
        self._claims.drop(shard)

    def _write(self, shard: ShardId, arrays: ShardArrays, records: int) -> None:
        """Write and commit, in the background."""
        try:
            self._writer.write(shard, arrays.finish())
        except ClaimLostError as error:
            # This rank was taken for dead. The other one's result is the same, byte for byte.
            logger.warning("%s", error)
        else:
            self._shards += 1
            self._records += records
            self._progress.update(records)
            self._log.update(self._shards, self._records)
        finally:
            self._claims.drop(shard)

    def _finish_write(self) -> None:
        """Wait for the shard that is being written; raises what its writing raised."""
        if self._writing is not None:
            writing, self._writing = self._writing, None
            writing.result()
