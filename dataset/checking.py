"""Checking a dataset: are the annotations COCO, and are the images what they say?

Errors are what would stop a run or spoil it in silence. Warnings are what COCO itself contains,
or what detectron2 drops by design; they do not fail the check.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from typing import Any, Literal, TypeGuard

from dataset.annotations import image_path, parse_image
from dataset.coco_json import iterate_sections
from dataset.pixels import examine_image
from storage.progress import Progress

# COCO's own boxes leave the image by fractions of a pixel; more than this is a mistake.
_ROUNDING_PIXELS = 1.0
_NOISE_PIXELS = 1e-3
_IMAGES_WORTH_A_PROCESS = 100
_CHUNK = 32

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        image: file name of the image, "image <id>" where there is none, or "" for the dataset.
        kind: a word to group by: section, image, duplicate, missing, unreadable, size, depth,
            large, annotation, category, box, polygon.
        message: what was expected and what was found.
        severity: "error" or "warning".
    """

    image: str
    kind: str
    message: str
    severity: Severity = "error"

    def __str__(self) -> str:
        where = f"{self.image}: " if self.image else ""
        return f"{self.severity}: {where}{self.message}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """What a check found: the problems, and how much was looked at."""

    problems: list[Problem]
    images: int
    objects: int
    categories: int
    images_without_objects: int

    def count(self, severity: Severity) -> int:
        return sum(problem.severity == severity for problem in self.problems)

    def to_json(self) -> dict[str, Any]:
        """All of it, for scripts."""
        counts = {"errors": self.count("error"), "warnings": self.count("warning")}
        return {**counts, **asdict(self)}

    def lines(self, limit: int) -> Iterator[str]:
        """A line for each of the first `limit` problems, errors first, and a summary."""
        problems = sorted(self.problems, key=lambda problem: problem.severity)
        yield from map(str, problems[:limit])
        if len(problems) > limit:
            yield f"and {len(problems) - limit} more problems"
        yield (
            f"{self.images} images ({self.images_without_objects} without objects), "
            f"{self.objects} objects, {self.categories} categories: "
            f"{self.count('error')} errors, {self.count('warning')} warnings"
        )


@dataclass
class _Contents:
    """The parts of an annotation file that the checks look at."""

    images: dict[int, tuple[str, int, int]] = field(default_factory=dict)
    categories: set[int] = field(default_factory=set)
    # (number in the file, id, image id, category id, box)
    objects: list[tuple[int, int, int, int, tuple[float, ...]]] = field(default_factory=list)
    sections: set[str] = field(default_factory=set)
    problems: list[Problem] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, image: str, kind: str, message: str, severity: Severity = "error") -> None:
        self.problems.append(Problem(image, kind, message, severity))

    def name_of(self, image_id: int) -> str:
        return self.images[image_id][0] if image_id in self.images else f"image {image_id}"


def check(
    annotations: str | os.PathLike[str],
    images_root: str | os.PathLike[str],
    workers: int | None = None,
) -> list[Problem]:
    """List what is wrong with a dataset; see `examine`."""
    return examine(annotations, images_root, workers).problems


def examine(
    annotations: str | os.PathLike[str],
    images_root: str | os.PathLike[str],
    workers: int | None = None,
) -> Report:
    """Check an annotation file, and decode every image that it names.

    Args:
        annotations: the COCO annotation file.
        images_root: the folder that its file names are relative to.
        workers: processes to decode with; None takes one a core, where that is worth it.

    Raises:
        FileNotFoundError: the annotation file or the folder is not there.
        ValueError: the file is not JSON, so that nothing in it can be checked.
    """
    if not os.path.isdir(images_root):
        raise FileNotFoundError(f"{os.fspath(images_root)}: there is no such image folder")
    contents = _read(annotations)
    _check_objects(contents)
    files = [(image_path(images_root, name), h, w) for name, h, w in contents.images.values()]
    names = (name for name, _, _ in contents.images.values())
    for name, found in zip(names, _examine_images(files, workers), strict=True):
        if found is not None:
            contents.add(name, *found)
    with_objects = {image_id for _, _, image_id, _, _ in contents.objects}
    return Report(
        problems=contents.problems,
        images=contents.counts["images"],
        objects=contents.counts["annotations"],
        categories=len(contents.categories),
        images_without_objects=len(contents.images.keys() - with_objects),
    )


def _read(annotations: str | os.PathLike[str]) -> _Contents:
    contents = _Contents()
    readers = {"images": _read_image, "annotations": _read_object, "categories": _read_category}
    for section, value, is_element in iterate_sections(annotations):
        if section not in readers:
            continue
        contents.sections.add(section)
        if is_element:
            readers[section](contents, value, contents.counts[section])
            contents.counts[section] += 1
        elif value is not None:
            contents.add("", "section", f"`{section}` must be a list, got {type(value).__name__}")
    for section in readers:
        if section not in contents.sections:
            contents.add("", "section", f"not COCO annotations, there is no list `{section}`")
        elif section != "annotations" and not contents.counts[section]:
            contents.add("", "section", f"the list `{section}` is empty")
    contents.images = dict(sorted(contents.images.items()))
    return contents


def _read_image(contents: _Contents, element: Any, number: int) -> None:
    try:
        image_id, file_name, height, width = parse_image(element, number, "annotations")
    except ValueError as error:
        name = element.get("file_name") if isinstance(element, dict) else None
        shown = name if isinstance(name, str) and name else f"images[{number}]"
        contents.add(shown, "image", str(error).removeprefix("annotations: "))
        return
    if image_id in contents.images:
        earlier = contents.images[image_id][0]
        contents.add(file_name, "duplicate", f"image id {image_id} is also that of {earlier}")
        return
    contents.images[image_id] = (file_name, height, width)


def _read_category(contents: _Contents, element: Any, number: int) -> None:
    category = element if isinstance(element, dict) else {}
    category_id = category.get("id")
    if not _is_integer(category_id) or not isinstance(category.get("name"), str):
        contents.add("", "category", f"categories[{number}] must have an integer id and a name")
    elif category_id in contents.categories:
        contents.add("", "duplicate", f"category id {category_id} is given twice")
    else:
        contents.categories.add(category_id)


def _read_object(contents: _Contents, element: Any, number: int) -> None:
    where = f"annotations[{number}]"
    if not isinstance(element, dict):
        contents.add("", "annotation", f"{where} must be an object")
        return
    image = f"image {element.get('image_id')}"
    ids: list[int] = []
    for key in ("id", "image_id", "category_id"):
        value = element.get(key)
        if not _is_integer(value):
            contents.add(image, "annotation", f"{where}: `{key}` must be an integer, got {value!r}")
            return
        ids.append(value)
    box = element.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_finite, box)):
        contents.add(image, "box", f"annotation {ids[0]}: `bbox` must be 4 numbers, got {box!r}")
        return
    if element.get("ignore"):
        contents.add(image, "annotation", f"annotation {ids[0]}: detectron2 refuses `ignore`")
    if _has_no_polygon(element.get("segmentation")):
        message = f"annotation {ids[0]}: no polygon has 3 points; detectron2 drops the object"
        contents.add(image, "polygon", message, "warning")
    contents.objects.append((number, ids[0], ids[1], ids[2], tuple(box)))


def _is_integer(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value)


def _has_no_polygon(segmentation: Any) -> bool:
    """Whether detectron2 would drop the object: polygons given, none of them usable."""
    if not isinstance(segmentation, list) or not segmentation:
        return False
    return not any(isinstance(p, list) and len(p) >= 6 and len(p) % 2 == 0 for p in segmentation)


def _check_objects(contents: _Contents) -> None:
    seen: set[int] = set()
    for number, object_id, image_id, category_id, box in contents.objects:
        image = contents.name_of(image_id)
        if object_id in seen:
            message = f"annotations[{number}]: annotation id {object_id} is given twice"
            contents.add(image, "duplicate", message)
        seen.add(object_id)
        if category_id not in contents.categories:
            message = f"annotation {object_id}: category {category_id} is not in `categories`"
            contents.add(image, "category", message)
        if image_id not in contents.images:
            message = f"annotation {object_id}: image {image_id} is not in `images`"
            contents.add(image, "annotation", message)
            continue
        _, height, width = contents.images[image_id]
        found = _check_box(box, height, width)
        if found is not None:
            contents.add(image, "box", f"annotation {object_id}: {found[0]}", found[1])


def _check_box(box: tuple[float, ...], height: int, width: int) -> tuple[str, Severity] | None:
    x, y, w, h = box
    shown = f"box [{x:g}, {y:g}, {w:g}, {h:g}] (left, top, width, height)"
    if w < 0 or h < 0:
        return f"{shown} has a negative size", "error"
    outside = max(-x, -y, x + w - width, y + h - height)
    if outside > _ROUNDING_PIXELS:
        message = f"{shown} reaches {outside:g} pixels out of the {height}x{width} image"
        return message + " (height x width)", "error"
    if w == 0 or h == 0:
        return f"{shown} has no area; training drops it", "warning"
    if outside > _NOISE_PIXELS:
        return f"{shown} reaches {outside:g} pixels out of the image; it is clipped", "warning"
    return None


_Found = tuple[str, str]


def _examine_images(
    files: list[tuple[str, int, int]], workers: int | None
) -> Iterator[_Found | None]:
    """Decode every image; results come in the order of `files`."""
    if workers is None:
        workers = min(os.cpu_count() or 1, len(files) // _IMAGES_WORTH_A_PROCESS + 1)
    with Progress("images", total=len(files), unit="images") as progress:
        yield from progress.over(_map_images(files, workers))


def _map_images(files: list[tuple[str, int, int]], workers: int) -> Iterable[_Found | None]:
    if workers <= 1:
        yield from map(_examine_image, files)
        return
    # Spawned, not forked: a fork of a process with threads can hang.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        yield from pool.map(_examine_image, files, chunksize=_CHUNK)


def _examine_image(file: tuple[str, int, int]) -> _Found | None:
    """Decode one image and compare its size, after EXIF rotation, with the annotations."""
    path, height, width = file
    try:
        examine_image(path, (height, width))
    except FileNotFoundError:
        return "missing", f"there is no {path}"
    except (OSError, ValueError) as error:
        # The line names the image already.
        return getattr(error, "kind", "unreadable"), str(error).removeprefix(f"{path}: ")
    return None
