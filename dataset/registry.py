"""Folders and names known to detectron2: where a dataset's annotations and images are."""

from __future__ import annotations

import difflib
import os
import re
from pathlib import Path
from typing import Any

from dataset.annotations import image_path, parse_image
from dataset.coco_json import iterate_sections

_PREFIX = "folder_"
_ANNOTATIONS = re.compile(r"instances_(?P<split>.+)\.json")


def register_folder(folder: str | os.PathLike[str]) -> dict[str, tuple[str, str]]:
    """Register every `annotations/instances_<split>.json` of a folder as `folder_<split>`.

    The images of a split are in `images/<split>/`, `<split>/` or `images/`, whichever holds the
    first image that the file names. Registering another folder replaces the earlier one, its
    other splits included.

    Returns:
        name -> (annotation file, image root), both absolute.

    Raises:
        FileNotFoundError: the folder, its annotations or the first image of a split is missing.
        ValueError: an annotation file is not COCO.
    """
    found = _find_splits(Path(folder).absolute())
    from detectron2.data import DatasetCatalog, MetadataCatalog
    from detectron2.data.datasets import load_coco_json

    for name in [name for name in DatasetCatalog.list() if name.startswith(_PREFIX)]:
        DatasetCatalog.remove(name)
        if name in MetadataCatalog:
            MetadataCatalog.remove(name)
    for name, (json_file, root) in found.items():

        def load(
            json_file: str = json_file, root: str = root, name: str = name
        ) -> list[dict[str, Any]]:
            dicts: list[dict[str, Any]] = load_coco_json(json_file, root, name)
            _refuse_escapes(dicts, root, json_file)
            return dicts

        DatasetCatalog.register(name, load)
        MetadataCatalog.get(name).set(json_file=json_file, image_root=root, evaluator_type="coco")
    return found


def _find_splits(folder: Path) -> dict[str, tuple[str, str]]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such dataset folder")
    found = {}
    for path in sorted((folder / "annotations").glob("instances_*.json")):
        match = _ANNOTATIONS.fullmatch(path.name)
        if match:
            split = match["split"]
            found[_PREFIX + split] = (str(path), str(_find_image_root(folder, split, path)))
    if not found:
        raise FileNotFoundError(
            f"{folder}: there is no annotations/instances_<split>.json, such as "
            "annotations/instances_train.json"
        )
    return found


def _find_image_root(folder: Path, split: str, annotations: Path) -> Path:
    first = _first_file_name(annotations)
    candidates = [folder / "images" / split, folder / split, folder / "images"]
    for candidate in candidates:
        if os.path.isfile(image_path(candidate, first)):
            return candidate
    raise FileNotFoundError(
        f"{annotations}: its first image {first!r} is in none of "
        + ", ".join(str(candidate) for candidate in candidates)
    )


def _first_file_name(annotations: Path) -> str:
    for section, value, is_element in iterate_sections(annotations):
        if section == "images" and is_element:
            return parse_image(value, 0, str(annotations))[1]
    raise ValueError(f"{annotations}: not COCO annotations, there is no image in `images`")


def _refuse_escapes(dicts: list[dict[str, Any]], root: str, json_file: str) -> None:
    """detectron2 joins root and file name unchecked; check what came out."""
    prefix = os.path.join(root, "")
    for record in dicts:
        name = record["file_name"]
        relative = name.removeprefix(prefix) if name.startswith(prefix) else name
        try:
            image_path(root, relative)
        except ValueError as error:
            raise ValueError(f"{json_file}: image {record['image_id']}: {error}") from None


def locate(name: str) -> tuple[str, str]:
    """Find the files of a registered COCO-format dataset.

    detectron2's own names are included; they lie under `$DETECTRON2_DATASETS`.

    Returns:
        (annotation file, image root).

    Raises:
        ValueError: no such dataset is registered, or it is not in COCO format.
        FileNotFoundError: it is registered, but its files are not there.
    """
    import detectron2.data.datasets  # noqa: F401 - registers detectron2's own names
    from detectron2.data import DatasetCatalog, MetadataCatalog

    known = DatasetCatalog.list()
    if name not in known:
        raise ValueError(_unknown_dataset(name, known))
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("json_file")
    root = metadata.get("image_root")
    if not json_file or not root or metadata.get("evaluator_type") != "coco":
        raise ValueError(
            f"dataset {name!r} is not a COCO detection dataset: it needs `json_file`, "
            "`image_root` and evaluator_type `coco` in its metadata"
        )
    json_file, root = os.fspath(json_file), os.fspath(root)
    for path, is_there in ((json_file, os.path.isfile), (root, os.path.isdir)):
        if not is_there(path):
            raise FileNotFoundError(
                f"dataset {name!r}: there is no {path}; set DETECTRON2_DATASETS to the folder "
                "that holds the datasets, or DATASET.FOLDER to a folder in COCO format"
            )
    return json_file, root


def _unknown_dataset(name: str, known: list[str]) -> str:
    message = f"no dataset {name!r} is registered"
    close = difflib.get_close_matches(name, known, n=3)
    if close:
        message += "; did you mean " + " or ".join(close) + "?"
    if name.startswith(_PREFIX):
        ours = [other for other in known if other.startswith(_PREFIX)]
        message += "; of the folder in DATASET.FOLDER there are: " + (", ".join(ours) or "none")
    return message
