"""Images for the benchmarks of speed: a COCO-format folder in which all images have one shape.

A few scenes are drawn and stored under many ids, as JPEG with the short side of most of COCO's
images: reading and rendering them costs what it costs on COCO, and drawing them costs little.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

from dataset.scenes import CLASS_NAMES, draw_scene

NUM_SCENES = 16
# Pixels; two thirds of COCO's images have a short side of 480 or 427.
SHORT_SIDE = 480
# As the configs for COCO have; only the first few have objects.
NUM_CLASSES = 80

ViewSize = tuple[int, int]


def view_size(text: str) -> ViewSize:
    """Read `800x1344` (height, width) or `320` (a square) from a command line, pixels."""
    try:
        height, width = (int(part) for part in (text.split("x") * 2)[:2])
    except ValueError:
        height = width = 0
    if min(height, width) < 32 or height > width:
        raise argparse.ArgumentTypeError(
            f"expected a side such as 320, or height and width such as 800x1344, got {text!r}"
        )
    return height, width


def write_scenes(folder: Path, count: int, view: ViewSize) -> None:
    """Write `count` images whose views have the given height and width.

    The folder gets `annotations/instances_train.json` and `instances_val.json` (the first image).
    """
    height, width = (round(side * SHORT_SIDE / view[0]) for side in view)
    for name in ("images", "annotations"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    scenes = [
        draw_scene(np.random.default_rng(number), height, width)
        for number in range(min(count, NUM_SCENES))
    ]
    for number in range(count):
        path = folder / "images" / f"{number:06d}.jpg"
        Image.fromarray(scenes[number % len(scenes)].pixels).save(path, quality=90)
    images = [
        {"id": number + 1, "file_name": f"{number:06d}.jpg", "height": height, "width": width}
        for number in range(count)
    ]
    objects = [
        {
            "image_id": number + 1, "category_id": one.class_index + 1, "iscrowd": 0,
            "bbox": list(one.box_xywh_abs), "area": one.area,
        }
        for number in range(count)
        for one in scenes[number % len(scenes)].objects
    ]  # fmt: skip
    content = {
        "images": images,
        "annotations": [{"id": number, **one} for number, one in enumerate(objects, start=1)],
        "categories": [
            {"id": i + 1, "name": CLASS_NAMES[i] if i < len(CLASS_NAMES) else f"class {i + 1}"}
            for i in range(NUM_CLASSES)
        ],
    }
    first = {
        **content,
        "images": images[:1],
        "annotations": [one for one in content["annotations"] if one["image_id"] == 1],
    }
    for split, part in (("train", content), ("val", first)):
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(part))
