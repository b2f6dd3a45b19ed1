"""How fast the teacher is on this machine: a few batches of the plan, computed and thrown away."""

from __future__ import annotations

import time

import numpy as np
from detectron2.config import CfgNode

from dataset.annotations import require_images
from storage.index import ShardTable

from .estimate import Rate
from .images import RecordImages, make_loader
from .numerics import fixed_numerics
from .prepare import Prepared
from .ranks import Rank, pick_device
from .teacher import load_teacher, naming_the_batch


def measure_rate(prepared: Prepared, cfg: CfgNode, num_batches: int) -> Rate:
    """Render, compute and encode batches from all over the plan as one rank does, writing nothing.

    One more batch goes first and does not count: it starts the image workers and the device.

    Args:
        prepared: the planned dump.
        cfg: the config that it was prepared from.
        num_batches: teacher forwards to time.

    Raises:
        FileNotFoundError: images, or the teacher's weights, are not there.
        ValueError: a view cannot be rendered, or the weights do not fit.
        DumpError: the GPU is out of memory.
    """
    require_images(prepared.images, prepared.image_root)
    device = pick_device(cfg.MODEL.DEVICE, Rank())
    ours = prepared.settings.teacher
    with fixed_numerics(ours, device):
        teacher = load_teacher(
            prepared.teacher_cfg, device, precision=ours.precision, preset=prepared.preset
        )
        batches = _spread(prepared, num_batches + 1)
        loader = make_loader(
            RecordImages(prepared.images, prepared.image_root, prepared.index, teacher.cfg),
            batches,
            batch=ours.batch,
            num_workers=cfg.DATALOADER.NUM_WORKERS,
            device=device,
            forked=True,
        )
        start, records = 0.0, 0
        for number, (planned, batch) in enumerate(zip(batches, loader, strict=True)):
            for failure in batch.failures:
                raise ValueError(str(failure))
            geometry = prepared.geometries[int(prepared.index.bucket[planned[0]])]
            with naming_the_batch(len(batch.images), geometry):
                codes = teacher.encode(teacher.run(batch.images), geometry)
            # What is on the host has been waited for.
            _ = [code.cpu() for code in codes.values()]
            records += len(planned) if number else 0
            start = start if number else time.perf_counter()
        seconds = time.perf_counter() - start
    return Rate(
        records_per_sec=records / seconds,
        source=f"{num_batches} batches measured here on one {device.type}, without writing",
    )


def _spread(prepared: Prepared, count: int) -> list[list[int]]:
    """Record numbers of `count` batches, each the first of its shard, evenly over the plan."""
    table = ShardTable(prepared.index, prepared.shard_records)
    chosen = np.linspace(0, len(table) - 1, count).astype(int).tolist()
    batch = prepared.settings.teacher.batch
    return [table.records_of(table.shards[number])[:batch].tolist() for number in chosen]
