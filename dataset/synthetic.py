"""The synthetic set: a small COCO-format folder to try the whole pipeline on.

Layout of the folder, as `dataset.registry.register_folder` reads it:

    images/train_000001.png ...  images/val_000001.png ...
    annotations/instances_train.json  annotations/instances_val.json
    synthetic.json               the parameters; what makes the folder recognisable as ours

Every image is drawn from its own random stream, seeded by (seed, split, number), so the bytes do
not depend on the number of processes, and a longer set begins with the images of a shorter one.
Boxes are tight around the **visible** pixels of an object, as in COCO; `area` counts them. An
object that would show less than 60% of itself is not placed, so that none is hidden.

Images are PNG: lossless, so that every version of every JPEG library gives the same pixels, and a
teacher cache made on one machine passes its pixel check on another.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dataset.coco_json import write_json
from dataset.processes import mapped
from dataset.scenes import CLASS_NAMES, Scene, SceneObject, draw_scene
from storage.progress import Progress
from storage.whole import replaced

_GENERATOR = "synthetic"
# Raise it whenever the same parameters would give other bytes.
_VERSION = 1
_MARKER = "synthetic.json"
_SPLITS = ("train", "val")
_MIN_SIZE = 32
# Shapes of the images, as shares of the longer side, and how often each comes up: several shapes,
# so that batches of mixed sizes are exercised.
_SHAPES = ((1.0, 1.0), (0.75, 1.0), (1.0, 0.75))
_SHAPE_SHARES = (0.6, 0.2, 0.2)
# Below this many images, starting processes takes longer than drawing.
_IMAGES_WORTH_A_PROCESS = 150
_CHUNK = 25


@dataclass(frozen=True, kw_only=True)
class SyntheticConfig:
    """What a synthetic set is made from; equal configs give equal bytes.

    `train` and `val` are numbers of images, `size` the longer side of each in pixels.
    """

    train: int = 400
    val: int = 100
    size: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        limits = {"train": (1, 999_999), "val": (1, 999_999), "size": (_MIN_SIZE, 4096)}
        limits["seed"] = (0, 2**63 - 1)
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ValueError(f"--{name} must lie between {low} and {high}, got {value}")

    def count(self, split: str) -> int:
        return self.train if split == "train" else self.val


def write_synthetic(
    output: str | os.PathLike[str], config: SyntheticConfig, workers: int | None = None
) -> bool:
    """Write a synthetic set, or find that the same one is already there.

    Args:
        output: the folder; created if absent. An interrupted run is completed.
        config: what to draw.
        workers: processes; None takes one a core, where that is worth it.

    Returns:
        False if the same set was already there, complete.

    Raises:
        ValueError: the folder holds something else.
        OSError: it cannot be written.
    """
    folder = Path(output)
    if _is_complete(folder, config):
        return False
    for part in (folder / "images", folder / "annotations"):
        part.mkdir(parents=True, exist_ok=True)
    _write_marker(folder, config, complete=False)
    tasks = _tasks(folder, config)
    annotated: dict[str, list[_Annotated]] = {split: [] for split in _SPLITS}
    total = config.train + config.val
    with Progress("images", total=total, unit="images") as progress:
        for done in mapped(_draw_task, tasks, _worker_count(workers, total)):
            annotated[done[0].split] += done
            progress.update(len(done))
    for split in _SPLITS:
        write_json(_annotation_file(folder, split), _coco(split, annotated[split], config))
    _write_marker(folder, config, complete=True)
    return True


@dataclass(frozen=True, kw_only=True)
class _Task:
    """Some consecutive images of one split, for one process; numbers count from 1."""

    folder: str
    split: str
    first: int
    last: int
    size: int
    seed: int


@dataclass(frozen=True, kw_only=True)
class _Annotated:
    """What is kept of an image after its pixels are written."""

    split: str
    number: int
    height: int
    width: int
    objects: tuple[SceneObject, ...]


def _tasks(folder: Path, config: SyntheticConfig) -> list[_Task]:
    return [
        _Task(
            folder=str(folder),
            split=split,
            first=first,
            last=min(first + _CHUNK - 1, config.count(split)),
            size=config.size,
            seed=config.seed,
        )
        for split in _SPLITS
        for first in range(1, config.count(split) + 1, _CHUNK)
    ]


def _draw_task(task: _Task) -> list[_Annotated]:
    done = []
    for number in range(task.first, task.last + 1):
        scene = _draw_image(task.seed, task.split, number, task.size)
        path = Path(task.folder) / "images" / _file_name(task.split, number)
        with replaced(path) as partial:
            Image.fromarray(scene.pixels).save(partial, format="PNG", compress_level=1)
        height, width = scene.pixels.shape[:2]
        done.append(
            _Annotated(
                split=task.split, number=number, height=height, width=width, objects=scene.objects
            )
        )
    return done


def _draw_image(seed: int, split: str, number: int, size: int) -> Scene:
    stream = np.random.SeedSequence([seed, _SPLITS.index(split), number])
    rng = np.random.Generator(np.random.PCG64(stream))
    high, wide = _SHAPES[rng.choice(len(_SHAPES), p=_SHAPE_SHARES)]
    return draw_scene(rng, round(size * high), round(size * wide))


def _coco(split: str, images: list[_Annotated], config: SyntheticConfig) -> dict[str, Any]:
    return {
        "info": {"description": f"synthetic set, {split} split", **asdict(config)},
        "images": [
            {
                "id": image.number,
                "file_name": _file_name(split, image.number),
                "height": image.height,
                "width": image.width,
            }
            for image in images
        ],
        "annotations": list(_coco_annotations(images)),
        "categories": [
            {"id": index + 1, "name": name, "supercategory": "figure"}
            for index, name in enumerate(CLASS_NAMES)
        ],
    }


def _coco_annotations(images: Iterable[_Annotated]) -> Iterator[dict[str, Any]]:
    objects = ((image.number, thing) for image in images for thing in image.objects)
    for annotation_id, (image_id, thing) in enumerate(objects, start=1):
        yield {
            "id": annotation_id,
            "image_id": image_id,
            "category_id": thing.class_index + 1,
            "bbox": list(thing.box_xywh_abs),
            "area": thing.area,
            "iscrowd": 0,
        }


def _file_name(split: str, number: int) -> str:
    return f"{split}_{number:06d}.png"


def _annotation_file(folder: Path, split: str) -> Path:
    return folder / "annotations" / f"instances_{split}.json"


def _worker_count(workers: int | None, images: int) -> int:
    if workers is not None:
        return workers
    return min(os.cpu_count() or 1, images // _IMAGES_WORTH_A_PROCESS + 1)


def _marker(config: SyntheticConfig, complete: bool) -> dict[str, Any]:
    return {
        "generator": _GENERATOR,
        "version": _VERSION,
        "parameters": asdict(config),
        "complete": complete,
    }


def _write_marker(folder: Path, config: SyntheticConfig, complete: bool) -> None:
    write_json(folder / _MARKER, _marker(config, complete), indent=2)


def _is_complete(folder: Path, config: SyntheticConfig) -> bool:
    """Tell whether the set is there; refuse a folder that holds anything else."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return False
    if not folder.is_dir():
        raise ValueError(f"{folder}: is a file; --output must name a folder")
    found = _read_marker(folder)
    if found is None:
        raise ValueError(
            f"{folder}: is not empty and holds no synthetic set; choose another --output"
        )
    expected = _marker(config, complete=True)
    differences = [
        f"{key} {found.get(key)!r} instead of {expected[key]!r}"
        for key in ("version", "parameters")
        if found.get(key) != expected[key]
    ]
    if differences:
        raise ValueError(
            f"{folder}: holds another synthetic set ({', '.join(differences)}); "
            "choose another --output or delete that folder"
        )
    return found.get("complete") is True and _all_files_there(folder, config)


def _read_marker(folder: Path) -> dict[str, Any] | None:
    try:
        marker = json.loads((folder / _MARKER).read_text())
    except (OSError, ValueError):
        return None
    if not isinstance(marker, dict) or marker.get("generator") != _GENERATOR:
        return None
    return marker


def _all_files_there(folder: Path, config: SyntheticConfig) -> bool:
    expected = {
        _file_name(split, number)
        for split in _SPLITS
        for number in range(1, config.count(split) + 1)
    }
    images = folder / "images"
    there = set(os.listdir(images)) if images.is_dir() else set()
    return expected <= there and all(_annotation_file(folder, s).is_file() for s in _SPLITS)
