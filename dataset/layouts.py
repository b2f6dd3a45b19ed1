"""Layouts of dataset folders: which splits one holds, and where their images may be.

Two are read: COCO's, `annotations/instances_<split>.json`, with the images in `images/<split>/`,
`<split>/`, `images/`, `<split>/images/` or the folder itself; and Roboflow's,
`<split>/_annotations.coco.json` beside the images. A folder may have splits in both. Other
annotation files that are seen are named with what to do.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from configs.wording import listed

PREFIX = "folder_"
_COCO = re.compile(r"instances_(?P<split>.+)\.json")
_ROBOFLOW = "_annotations.coco.json"
_WRITERS = {
    "result.json": "Label Studio's export",
    _ROBOFLOW: "Roboflow's export without splits",
    "labels.json": "FiftyOne's export",
    "annotations.json": "labelme2coco's export",
}
_SHOWN_FILES = 3


@dataclass(frozen=True, kw_only=True)
class Split:
    """One split of a folder: its annotation file, and the folders to look for its images in."""

    name: str
    annotations: Path
    image_folders: tuple[Path, ...]


def find_splits(folder: Path) -> list[Split]:
    """Find the splits of a folder: those in COCO's layout, then others in Roboflow's.

    Raises:
        FileNotFoundError: there is no such folder, or no split in it; annotation files in other
            places are named.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such dataset folder")
    splits = []
    for path in sorted((folder / "annotations").glob("instances_*.json")):
        match = _COCO.fullmatch(path.name)
        if match:
            places = _image_folders(folder, match["split"])
            splits.append(Split(name=match["split"], annotations=path, image_folders=places))
    names = {split.name for split in splits}
    for path in sorted(folder.glob(f"*/{_ROBOFLOW}")):
        place = path.parent
        if place.name not in names:
            splits.append(Split(name=place.name, annotations=path, image_folders=(place,)))
    if not splits:
        raise FileNotFoundError(
            f"{folder}: there is no annotations/instances_<split>.json, such as "
            f"annotations/instances_train.json{_seen(folder)}"
        )
    return splits


def folders_near(annotations: Path) -> tuple[Path, ...]:
    """The folders to look for the images of an annotation file in, wherever it lies."""
    beside, above = annotations.parent, annotations.parent.parent
    match = _COCO.fullmatch(annotations.name)
    if match and beside.name == "annotations":
        return _image_folders(above, match["split"])
    return (beside / "images", beside, above / "images", above)


def new_places(folder: Path, split: str, root: Path) -> tuple[Path, Path]:
    """Annotation file and image folder of a split that is to be written.

    Args:
        folder: to write into.
        split: its name.
        root: where its images lie; the image folder may be that already.

    Raises:
        ValueError: one of them is there, or the name is that of a path.
    """
    if not split or "/" in split:
        raise ValueError(f"split {split!r}: expected a name without /, such as train")
    file, images = folder / "annotations" / f"instances_{split}.json", folder / "images" / split
    if os.path.lexists(file):
        raise ValueError(f"{file}: is there already; choose another --output")
    refuse_other(images, root)
    return file, images


def refuse_other(images: Path, root: Path) -> None:
    """Refuse a place for a link that holds something else than what it is to lead to.

    Raises:
        ValueError: it does. To remove it is advised of a link alone: a folder may be all there is.
    """
    if os.path.lexists(images) and os.path.realpath(images) != os.path.realpath(root):
        remedy = ", or remove that link" if images.is_symlink() else ""
        raise ValueError(f"{images}: is there already; choose another --output{remedy}")


def link_images(root: Path, output: Path, link: Path) -> None:
    """Link a split's image folder to where its images lie, unless the output has them anyway."""
    own = (output, output / "images", link)
    if os.path.realpath(root) not in map(os.path.realpath, own):
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(root.absolute())


def _image_folders(folder: Path, split: str) -> tuple[Path, ...]:
    images, own = folder / "images", folder / split
    return (images / split, own, images, own / "images", folder)


def _seen(folder: Path) -> str:
    """What annotation files there are in other places, and what to do with them."""
    paths = [path for pattern in ("*.json", "*/*.json") for path in sorted(folder.glob(pattern))]
    if not paths:
        return ""
    names = (
        str(path.relative_to(folder))
        + (f" ({_WRITERS[path.name]})" if path.name in _WRITERS else "")
        for path in paths
    )
    return (
        f"; but there is {listed(names, shown=_SHOWN_FILES)}: if it is in COCO format, move it to "
        "annotations/instances_train.json, and the part of it to evaluate on to "
        "annotations/instances_val.json"
    )
