"""A set of which only the images are known, written for DATASETS.UNLABELED."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataset.coco_json import write_json
from dataset.image_files import require_images
from dataset.layouts import folders_near, link_images, new_places
from dataset.pixels import ImageError, shown_size
from dataset.reading import read_annotations
from dataset.registry import find_image_root


@dataclass(frozen=True, kw_only=True)
class Written:
    """What was written.

    Attributes:
        num_images: of the set.
        root: the folder that its images lie in.
        left_out: a line for each file that is no image.
    """

    num_images: int
    root: Path
    left_out: tuple[str, ...]


def write_folder(
    images: str | os.PathLike[str], output: str | os.PathLike[str], *, split: str
) -> Written:
    """Write the images of a folder, and of those in it, as a split without labels.

    Images are numbered from 1 by their names. They are not copied: `images/<split>` links to them.

    Args:
        images: the folder; hidden files do not count, and what is no image is left out.
        output: the folder to write, in COCO's layout; it may hold other splits.
        split: name of the split.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: no image is in it, or the output holds such a split.
    """
    root = Path(images)
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: there is no such folder of images")
    places = new_places(Path(output), split, root)
    found: list[dict[str, Any]] = []
    left_out: list[str] = []
    for name in sorted(_files(root)):
        try:
            height, width = shown_size(root / name)
        except ImageError as error:
            left_out.append(str(error))
            continue
        one = {"id": len(found) + 1, "file_name": name, "height": height, "width": width}
        found.append(one)
    if not found:
        raise ValueError(f"{root}: expected images, found none")
    _write(places, Path(output), root, {"images": found, "annotations": [], "categories": []})
    return Written(num_images=len(found), root=root, left_out=tuple(left_out))


def write_without_labels(
    annotations: str | os.PathLike[str],
    output: str | os.PathLike[str],
    *,
    split: str,
    images: str | os.PathLike[str] | None = None,
) -> Written:
    """Write the images of an annotation file as a split without labels; ids stay what they are.

    Args:
        annotations: the COCO file; its labels are not used, and may be wrong or missing.
        output, split: as for `write_folder`.
        images: the image folder; None looks for it beside and above the file.

    Raises:
        FileNotFoundError: the file or an image is missing.
        ValueError: its images cannot be used, or the output holds such a split.
    """
    source = Path(annotations)
    root = Path(images) if images else find_image_root(source, folders_near(source))
    places = new_places(Path(output), split, root)
    whole = read_annotations(source, root).images_alone()
    whole.refuse()
    names = [os.path.relpath(path, root) for path in require_images(whole.images, root)]
    listed = [
        {"id": key, "file_name": name, "height": height, "width": width}
        for (key, _, height, width), name in zip(whole.images, names, strict=True)
    ]
    categories = [{"id": key, "name": name} for key, name in whole.categories.items()]
    _write(
        places, Path(output), root, {"images": listed, "annotations": [], "categories": categories}
    )
    return Written(num_images=len(listed), root=root, left_out=())


def _files(root: Path) -> Iterator[str]:
    """Files below a folder by their names from there, hidden ones and folders apart."""
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            if not name.startswith("."):
                yield Path(folder, name).relative_to(root).as_posix()


def _write(places: tuple[Path, Path], output: Path, root: Path, document: dict[str, Any]) -> None:
    file, link = places
    file.parent.mkdir(parents=True, exist_ok=True)
    link_images(root, output, link)
    write_json(file, document)
