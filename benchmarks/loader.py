"""What an image costs a data worker of stage 2: CPU time of one thread, part by part.

The views are 800x1344, rendered from JPEG files of COCO's size; records are as `store_speed` makes
them. Everything lies in the page cache. Given is the median over rounds, each of all images.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from storage import CacheReader, CacheWriter, Manifest, build_index
from storage.example import add_example
from storage.schema import PIXELS_CRC, RECORD

from .pipeline import CONFIGS
from .records import LEVELS, NUM_CLASSES, codec_of, geometry_of
from .rows import Row, conclude
from .scenes import write_scenes
from .store_speed import SHARD_RECORDS, make_arrays

if TYPE_CHECKING:
    from detectors import Setup
    from stage2_distill.data import ViewDataset
    from stage2_distill.sampler import Draw

SIZE = (800, 1344)
# CPU milliseconds an image: three fifths of the 35 and 48 that it was with every tensor copied into
# mapped memory.
LIMITS_MS = {"balanced": 21.0, "compact": 28.8}
IMAGES = 2 * SHARD_RECORDS
BATCH = 4

Work = Callable[[Sequence["Draw"]], object]


def measure(folder: Path, presets: Sequence[str], rounds: int) -> list[Row]:
    """Load every image under each preset; print the parts, and give the sums."""
    setup, images = prepare(folder)
    rows = []
    for preset in presets:
        dataset = dataset_of(folder, setup, images, preset)
        costs = part_costs(dataset, rounds)
        for name, cost in costs.items():
            print(f"{preset:>9}: {name:45} {cost:6.2f} ms")
        name = f"loading an image of {preset}, ms of one CPU"
        rows.append(Row(name=name, value=costs["all"], limit=LIMITS_MS[preset]))
    return rows


def prepare(folder: Path) -> tuple[Setup, list[dict[str, Any]]]:
    """Write images, and a config that makes them views of one size."""
    from configs.loader import load_config
    from detectors import Setup, training_images
    from detectors.command import register_data

    write_scenes(folder / "data", IMAGES, SIZE)
    cfg = load_config(
        str(CONFIGS / "distill" / "r50_2x_from_r101_1x.yaml"),
        [
            "DATASET.FOLDER", str(folder / "data"),
            "DATASETS.TRAIN", ("folder_train",), "DATASETS.TEST", (),
            "DATALOADER.FILTER_EMPTY_ANNOTATIONS", False,
            "VIEWS.SCALES", (SIZE[0],), "VIEWS.MAX_SIZE", SIZE[1], "VIEWS.NUM", 1,
        ],
    )  # fmt: skip
    register_data(cfg)
    setup = Setup(cfg)
    return setup, training_images(setup)


def dataset_of(
    folder: Path, setup: Setup, images: list[dict[str, Any]], preset: str
) -> ViewDataset:
    """The training data with a cache of random records, whose pixels are those of the views."""
    from stage2_distill.data import ViewDataset

    plain = ViewDataset(images, setup, None)
    views = [plain._render(draw)[1] for draw in draws()]
    geometry = geometry_of(*SIZE)
    index = build_index(
        image_id=[image["image_id"] for image in images], view=np.zeros(IMAGES),
        seed=np.arange(IMAGES, dtype=np.uint64), height=np.full(IMAGES, SIZE[0]),
        width=np.full(IMAGES, views[0].pixels.shape[1]),
        bucket=np.full(IMAGES, geometry.name), shard_records=SHARD_RECORDS,
    )  # fmt: skip
    manifest = Manifest.create(
        preset=preset, codec=codec_of(preset), levels=LEVELS, num_classes=NUM_CLASSES,
        geometries=[geometry], shard_records=SHARD_RECORDS,
        teacher={}, dataset={}, augmentation={}, numerics={},
    )  # fmt: skip
    writer = CacheWriter(folder / preset, manifest, index)
    arrays = make_arrays(codec_of(preset))
    (small,) = (one for one in writer.manifest.arrays[geometry.name] if one.name == RECORD)
    crc = {field.name: part for field, part in small.split(arrays[RECORD])}[PIXELS_CRC]
    for shard in writer.missing():
        crc[...] = [views[record].crc32c for record in writer.records_of(shard)]
        writer.write(shard, arrays)
    return ViewDataset(images, setup, CacheReader(folder / preset))


def draws() -> list[Draw]:
    """Every image once."""
    from stage2_distill.sampler import Draw

    return [Draw(position=position, view=0) for position in range(IMAGES)]


def part_costs(dataset: ViewDataset, rounds: int) -> dict[str, float]:
    """CPU milliseconds of an image by part, and in all; what each part adds to those before."""
    import torch

    from detectors.packing import pack
    from detectors.workers import keep_freed_memory

    reader = dataset._reader
    assert reader is not None
    numbers = {draw.position: draw.position for draw in draws()}

    def read(batch: Sequence[Draw]) -> object:
        return reader.read_encoded([numbers[draw.position] for draw in batch])

    def decode(batch: Sequence[Draw]) -> object:
        return reader.read_many([numbers[draw.position] for draw in batch])

    def render(batch: Sequence[Draw]) -> object:
        return [dataset._render(draw)[0] for draw in batch]

    def load(batch: Sequence[Draw]) -> object:
        return pack(dataset.__getitems__(list(batch)), shared=True)

    torch.set_num_threads(1)
    keep_freed_memory()  # as a worker does
    costs: dict[str, list[float]] = {work.__name__: [] for work in (read, decode, render, load)}
    for _ in range(rounds):
        for work in (read, decode, render, load):
            costs[work.__name__].append(cpu_ms(work))
    typical = {name: median(found) for name, found in costs.items()}
    return {
        "reading and checking the record": typical["read"],
        "decompressing and taking it apart": typical["decode"] - typical["read"],
        "rendering the view, ground truth": typical["render"],
        "packing it into the batch": typical["load"] - typical["decode"] - typical["render"],
        "all": typical["load"],
    }


def cpu_ms(work: Work) -> float:
    """CPU milliseconds an image."""
    batches = [draws()[start : start + BATCH] for start in range(0, IMAGES, BATCH)]
    start = time.process_time()
    for batch in batches:
        work(batch)
    return 1e3 * (time.process_time() - start) / IMAGES


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 0 only if every row is within its limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loader", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here too")
    parser.add_argument("--presets", nargs="+", choices=LIMITS_MS, default=list(LIMITS_MS))
    parser.add_argument("--rounds", type=int, default=7, help="default: 7")
    add_example(parser, "--presets balanced --rounds 3")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="gid-loader-") as folder:
        rows = measure(Path(folder), args.presets, args.rounds)
    return conclude(rows, args.json)


if __name__ == "__main__":
    sys.exit(main())
