"""Time and memory of `python -m stage1_dump plan` on annotations of COCO's size, in a new process.

The annotations are generated, seeded, with the counts of COCO train2017: 118,287 images, of which
0.9% have no object, 860,001 objects with polygons, 80 classes with gaps in their ids, and every key
that COCO has, 0.46 GB in all. Image sizes follow those of 500 images of COCO val2014 (the last of
the 5,000 "minival" ones, counted from a public list of their shapes): the sizes that occur there
four times or more, by count, and for the other 27% a longest side of 640 or 500 pixels with a
side ratio between 0.5 and 1. The plan is that of the shipped multi-scale pairing, four views; and
again with every other step that goes together with its scales.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from storage.example import add_example
from storage.whole import replaced

from .pipeline import CONFIGS
from .rows import Row, conclude

CONFIG = CONFIGS / "distill" / "r50_2x_multiscale_from_r101_1x_multiscale.yaml"
EVERY_STEP = (
    "VIEWS.CROP", "('relative_range', 0.7, 0.7)", "VIEWS.FLIP_VERTICAL", "0.5",
    "VIEWS.BRIGHTNESS", "(0.6, 1.4)", "VIEWS.CONTRAST", "(0.6, 1.4)",
    "VIEWS.SATURATION", "(0.6, 1.4)", "VIEWS.HUE", "(-0.05, 0.05)", "VIEWS.PLAIN", "(3,)",
)  # fmt: skip
LIMIT_SEC = 60.0
LIMIT_BYTES = 4e9

NUM_IMAGES = 118_287
NUM_OBJECTS = 860_001
SHARE_EMPTY = 0.009
# (width, height): how many of the 500 images counted. What is left of 500 is drawn.
COMMON_SIZES = {
    (640, 480): 112, (640, 427): 54, (480, 640): 37, (500, 375): 27, (427, 640): 21,
    (640, 426): 17, (640, 428): 16, (640, 425): 15, (426, 640): 11, (640, 424): 7, (640, 360): 7,
    (428, 640): 7, (425, 640): 6, (640, 478): 6, (612, 612): 6, (500, 333): 5, (640, 640): 5,
    (375, 500): 5,
}  # fmt: skip
COUNTED = 500
# Of the sizes drawn: how many are wider than high, and how many have 640 pixels at their longest.
SHARE_WIDE = 0.7
SHARE_640 = 0.75
# Points of a polygon, on average: with COCO's other keys this gives COCO's bytes an object.
MEAN_POINTS = 22
# Ids of COCO's 80 classes lie between 1 and 90.
CATEGORY_IDS = [number for number in range(1, 91) if number not in
                (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]  # fmt: skip


def measure(folder: Path) -> list[Row]:
    """Generate the annotations in a folder, unless they are there, and plan four views of them."""
    annotations = folder / "coco" / "annotations" / "instances_train2017.json"
    if not annotations.exists():
        write_annotations(annotations)
    (folder / "coco" / "train2017").mkdir(exist_ok=True)
    print(f"{annotations.stat().st_size / 1e9:.2f} GB of annotations")
    return [
        *_rows(folder, f"plan of {NUM_IMAGES:,} images x 4 views"),
        *_rows(folder, "the same with every step", *EVERY_STEP),
    ]


def _rows(folder: Path, name: str, *overrides: str) -> list[Row]:
    seconds, peak_bytes, planned = _run_plan(folder, overrides)
    assert (planned["images"], planned["views"]) == (NUM_IMAGES, 4)
    print(
        f"{name}: {planned['records']:,} records, {planned['buckets']:,} buckets, "
        f"{planned['shards']:,} shards"
    )
    return [
        Row(name=f"{name}, s", value=seconds, limit=LIMIT_SEC),
        Row(name=f"{name}, peak GB", value=peak_bytes / 1e9, limit=LIMIT_BYTES / 1e9),
    ]


def _run_plan(folder: Path, overrides: Sequence[str]) -> tuple[float, int, dict[str, int]]:
    """Run the command; return its seconds, the peak of its resident memory, and what it says."""
    command = [sys.executable, "-m", "stage1_dump", "plan", "--json", "--config-file", str(CONFIG)]
    command += ["DATASETS.TEST", "()", "CACHE.LOCATION", str(folder / "cache"), *overrides]
    environment = {**os.environ, "DETECTRON2_DATASETS": str(folder)}
    start = time.monotonic()
    # Not a pipe, which would have to be emptied while waiting with wait4.
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(command, env=environment, stdout=output)
        # wait4, and not getrusage: its peak is of this child alone.
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.monotonic() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"`{' '.join(command)}` ended with {process.returncode}")
        output.seek(0)
        return seconds, usage.ru_maxrss * 1024, json.load(output)


def write_annotations(path: Path, seed: int = 0) -> None:
    """Write instances of COCO's number, sizes and keys."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(seed)
    # COCO's ids have gaps.
    ids = np.sort(generator.choice(600_000, NUM_IMAGES, replace=False)).tolist()
    with replaced(path) as partial, open(partial, "w") as file:
        file.write('{"info": {"year": 2017}, "licenses": [], "images": [')
        file.writelines(_with_commas(_images(ids, generator)))
        file.write('], "annotations": [')
        file.writelines(_with_commas(_objects(ids, generator)))
        categories = [{"supercategory": "thing", "id": n, "name": f"class {n}"}
                      for n in CATEGORY_IDS]  # fmt: skip
        file.write(f'], "categories": {json.dumps(categories)}}}')


def draw_sizes(count: int, generator: np.random.Generator) -> list[tuple[int, int]]:
    """(width, height) of `count` images, as the module's text says."""
    sizes = [*COMMON_SIZES]
    shares = np.array([*COMMON_SIZES.values(), COUNTED - sum(COMMON_SIZES.values())]) / COUNTED
    drawn = []
    for choice in generator.choice(len(shares), count, p=shares).tolist():
        if choice < len(sizes):
            drawn.append(sizes[choice])
            continue
        longest = 640 if generator.random() < SHARE_640 else 500
        other = round(longest * generator.uniform(0.5, 1))
        is_wide = generator.random() < SHARE_WIDE
        drawn.append((longest, other) if is_wide else (other, longest))
    return drawn


def _images(ids: list[int], generator: np.random.Generator) -> Iterator[str]:
    for image_id, (width, height) in zip(ids, draw_sizes(len(ids), generator), strict=True):
        name = f"{image_id:012d}.jpg"
        image = {
            "license": 4,
            "file_name": name,
            "coco_url": f"http://images.cocodataset.org/train2017/{name}",
            "height": height,
            "width": width,
            "date_captured": "2013-11-14 11:38:44",
            "flickr_url": f"http://farm1.staticflickr.com/1/{image_id:010d}_ab0c0381e7_z.jpg",
            "id": image_id,
        }
        yield json.dumps(image)


def _objects(ids: list[int], generator: np.random.Generator) -> Iterator[str]:
    with_objects = [x for x in ids if generator.random() >= SHARE_EMPTY]
    owners = generator.choice(with_objects, NUM_OBJECTS).tolist()
    # Drawing every polygon would take minutes; what a parser meets is the same.
    polygons = [_polygon(generator) for _ in range(4096)]
    categories = generator.choice(CATEGORY_IDS, NUM_OBJECTS).tolist()
    for number, (image_id, category) in enumerate(zip(owners, categories, strict=True), 1):
        yield (
            f'{{{polygons[number % len(polygons)]}, "image_id": {image_id}, '
            f'"category_id": {category}, "id": {number}}}'
        )


def _polygon(generator: np.random.Generator) -> str:
    """Polygon, area, crowd flag and box of one object, as they stand in the file."""
    count = 2 * (3 + generator.geometric(1 / (MEAN_POINTS - 2)))
    points = generator.uniform(0, 480, count).round(2).tolist()
    entry = {
        "segmentation": [points],
        "area": float(generator.uniform(10, 1e5)),
        "iscrowd": 0,
        "bbox": generator.uniform(0, 400, 4).round(2).tolist(),
    }
    return json.dumps(entry)[1:-1]


def _with_commas(elements: Iterator[str]) -> Iterator[str]:
    yield next(elements)
    yield from (f", {element}" for element in elements)


def main(argv: list[str] | None = None) -> int:
    """Measure and print; 0 only if every row is within its limit."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plan_speed", description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("output/plan_speed"))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures here too")
    add_example(parser, "--json output/plan_speed.json")
    args = parser.parse_args(argv)
    rows = measure(args.output)
    return conclude(rows, args.json)


if __name__ == "__main__":
    sys.exit(main())
