"""How fast the teacher is on this machine, and what its records take, on a few batches of the plan.

Everything is computed and thrown away.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

import numpy as np
from detectron2.config import CfgNode
from torch import Tensor

from dataset.image_files import require_images
from storage import Geometry, RecordCodec
from storage.codecs.record import joined
from storage.progress import Progress
from storage.shards import EncodedShard

from .estimate import Rate
from .images import ImageBatch, RecordImages, make_loader
from .numerics import fixed_numerics
from .prepare import Prepared
from .ranks import Rank, pick_device
from .sizes import Sample, candidates, compressed_arrays
from .teacher import Teacher, load_teacher, naming_the_batch

# Sizes vary less than times do.
_MOST_BATCHES_WEIGHED = 8


def measure(prepared: Prepared, cfg: CfgNode, num_batches: int) -> tuple[Rate, dict[str, Sample]]:
    """Time batches from all over the plan, as one rank computes them, and weigh some of them.

    Args:
        prepared: the planned dump.
        cfg: the config that it was prepared from.
        num_batches: teacher forwards to time.

    Returns:
        The rate, and what the records took under each preset that compresses, by its title.

    Raises:
        FileNotFoundError: images, or the teacher's weights, are not there.
        ValueError: a view cannot be rendered, or the weights do not fit.
        DumpError: the GPU is out of memory.
    """
    for images, root in prepared.written_images():
        require_images(images, root)
    device = pick_device(cfg.MODEL.DEVICE, Rank())
    ours = prepared.settings.teacher
    with fixed_numerics(ours, device):
        teacher = load_teacher(
            prepared.setup.stored, device, precision=ours.precision, codec=prepared.codec()
        )
        run = _Measurement(prepared, teacher, cfg.DATALOADER.NUM_WORKERS)
        rate = run.time(num_batches)
        return rate, run.weigh(min(num_batches, _MOST_BATCHES_WEIGHED))


class _Measurement:
    """A teacher with the views that it is measured on."""

    def __init__(self, prepared: Prepared, teacher: Teacher, num_workers: int) -> None:
        self._prepared = prepared
        self._teacher = teacher
        self._num_workers = num_workers

    def time(self, count: int) -> Rate:
        """Compute and encode batches. One more goes first: it starts workers and device."""
        start, records = 0.0, 0
        with Progress("measure speed", total=count + 1, unit="batches") as progress:
            for number, (batch, geometry) in enumerate(progress.over(self._batches(count + 1))):
                with naming_the_batch(len(batch), geometry):
                    outputs = self._teacher.run(batch.images(self._teacher.device))
                    codes = self._teacher.encode(outputs, geometry)
                # What is on the host has been waited for.
                _ = [code.cpu() for code in codes.values()]
                records += len(batch) if number else 0
                start = start if number else time.perf_counter()
        device = self._teacher.device.type
        return Rate(
            records_per_sec=records / (time.perf_counter() - start),
            source=f"{count} batches measured here on one {device}, without writing",
        )

    def weigh(self, count: int) -> dict[str, Sample]:
        """Encode and compress batches in every preset that compresses.

        Apart from the time taken: beside this work, image workers would get ahead of the teacher.
        """
        geometries = self._prepared.geometries
        codecs = {
            title: codec
            for title, preset in candidates(self._prepared).items()
            if compressed_arrays(codec := self._prepared.codec(preset), geometries[0])
        }
        records = np.zeros(len(geometries), dtype=np.int64)
        taken: dict[str, dict[str, int]] = {title: {} for title in codecs}
        if not codecs:
            return {}
        with Progress("measure sizes", total=count, unit="batches") as progress:
            for batch, geometry in progress.over(self._batches(count)):
                with naming_the_batch(len(batch), geometry):
                    outputs = self._teacher.run(batch.images(self._teacher.device))
                values = self._prepared.setup.stored.values(outputs)
                records[geometries.index(geometry)] += len(batch)
                for title, codec in codecs.items():
                    for name, size in _compressed_bytes(codec, values, geometry):
                        taken[title][name] = taken[title].get(name, 0) + size
        source = f"{records.sum():,} records measured here"
        return {
            title: Sample(source=source, geometries=geometries, records=records, array_bytes=sizes)
            for title, sizes in taken.items()
        }

    def _batches(self, count: int) -> Iterator[tuple[ImageBatch, Geometry]]:
        """Batches with the geometry of their views, each the first of its shard, over all."""
        prepared = self._prepared
        planned = _spread(prepared, count)
        loader = make_loader(
            RecordImages(prepared),
            planned,
            batch=prepared.settings.teacher.batch,
            num_workers=self._num_workers,
            device=self._teacher.device,
            forked=True,
        )
        for records, batch in zip(planned, loader, strict=True):
            if batch.failures:
                raise ValueError(str(batch.failures[0]))
            yield batch, prepared.geometries[int(prepared.index.bucket[records[0]])]


def _compressed_bytes(
    codec: RecordCodec, values: Mapping[str, Tensor], geometry: Geometry
) -> Iterator[tuple[str, int]]:
    """Each compressed array with the bytes of its chunks, as a dump writes them."""
    arrays = {one.name: one for one in compressed_arrays(codec, geometry)}
    for name, data in joined(list(arrays.values()), codec.encode(values, geometry)):
        count = len(data)
        encoded = EncodedShard(arrays[name], count, data.cpu().numpy(), np.arange(count))
        yield name, encoded.chunk_bytes


def _spread(prepared: Prepared, count: int) -> list[list[int]]:
    """Record numbers of `count` batches, each the first of its shard, evenly over the plan."""
    table = prepared.table
    chosen = np.linspace(0, len(table) - 1, count).astype(int).tolist()
    batch = prepared.settings.teacher.batch
    return [table.records_of(table.shards[number])[:batch].tolist() for number in chosen]
