"""Checking a dataset: are the annotations COCO, and are the images what they say?

Errors are what every command refuses, or would stop it in the middle. Warnings are what COCO itself
contains, or what detectron2 drops or clips by design; they do not fail the check. What is asked of
the annotations is the reader's business, `dataset.reading`; here the images are decoded too.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np

from dataset.contents import LABELS
from dataset.elements import Problem, Severity
from dataset.image_files import ImageFolder, image_path
from dataset.pixels import examine_image
from dataset.processes import mapped
from dataset.reading import Annotations, read_annotations
from storage.progress import Progress
from storage.resources import exhausted

_IMAGES_WORTH_A_PROCESS = 100
_CHUNK = 32


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


def examine(
    annotations: str | os.PathLike[str],
    images_root: str | os.PathLike[str],
    workers: int | None = None,
) -> Report:
    """Check an annotation file, and decode every image that it names.

    A file without objects and categories is checked as a set without labels, with a warning.

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
    found = read_annotations(annotations, images_root)
    labels = [one.message for one in found.errors if one.kind == LABELS]
    has_labels = found.counts["annotations"] or found.counts["categories"]
    if labels and len(labels) == len(found.errors) and not has_labels:
        said = f"{'; '.join(labels)}; DATASETS.UNLABELED alone takes such a set"
        found = replace(found.unlabelled(), notes=(Problem("", LABELS, said, "warning"),))
    problems = [*found.problems(), *_image_problems(found, images_root, workers)]
    return Report(
        problems=problems,
        images=found.counts["images"],
        objects=found.counts["annotations"],
        categories=len(found.categories),
        images_without_objects=int((~np.isin(found.images.ids, found.objects.image_ids)).sum()),
    )


def _image_problems(
    annotations: Annotations, images_root: str | os.PathLike[str], workers: int | None
) -> Iterator[Problem]:
    """Decode every image whose entry is not refused."""
    folder = ImageFolder(images_root)
    refused = {problem.image for problem in annotations.errors if problem.kind == "image"}
    names, files = [], []
    for _, name, height, width in annotations.images:
        if name not in refused:
            names.append(name)
            files.append((folder.find(name) or image_path(images_root, name), height, width))
    for name, found in zip(names, _examine_images(files, workers), strict=True):
        if found is not None:
            kind, message = found
            hint = folder.hint(name) if kind == "missing" else ""
            yield Problem(name, kind, message + hint)


_Found = tuple[str, str]


def _examine_images(
    files: list[tuple[str, int, int]], workers: int | None
) -> Iterator[_Found | None]:
    """Decode every image; results come in the order of `files`."""
    if workers is None:
        workers = min(os.cpu_count() or 1, len(files) // _IMAGES_WORTH_A_PROCESS + 1)
    with Progress("images", total=len(files), unit="images") as progress:
        yield from progress.over(mapped(_examine_image, files, workers, _CHUNK))


def _examine_image(file: tuple[str, int, int]) -> _Found | None:
    """Decode one image and compare its size, after EXIF rotation, with the annotations."""
    path, height, width = file
    try:
        examine_image(path, (height, width))
    except FileNotFoundError:
        return "missing", f"there is no {path}"
    except (OSError, ValueError) as error:
        if exhausted(error):  # this machine's fault, and not the image's
            raise
        # The line names the image already.
        return getattr(error, "kind", "unreadable"), str(error).removeprefix(f"{path}: ")
    return None
