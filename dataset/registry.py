"""Folders and names known to detectron2: where a dataset's annotations and images are.

Whatever detectron2 gets of them comes from the one reader, `dataset.reading`.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from itertools import islice, product
from pathlib import Path
from typing import Any

from configs.imports import OF_YOURS
from dataset.catalog import is_function, is_written, set_metadata, write_coco
from dataset.coco_json import iterate_sections
from dataset.forms import dataset_dicts
from dataset.image_files import ImageFolder
from dataset.layouts import PREFIX, find_splits
from dataset.reading import Annotations, load_annotations, read_annotations

# Images by which the folder of a split is found: the first that is there decides.
_LOOKED_FOR = 100


def register_folder(
    folder: str | os.PathLike[str], needed: Collection[str] | None = None
) -> dict[str, tuple[str, str]]:
    """Register every split of a folder as `folder_<split>`; see `dataset.layouts`.

    The images of a split are in the first folder that holds the first image that its annotations
    name, or, where that is missing, the next. Registering another folder replaces the earlier one,
    its other splits included.

    Args:
        folder: the dataset folder.
        needed: names of which the images must be found; None for all.

    Returns:
        name -> (annotation file, image root), both absolute.

    Raises:
        FileNotFoundError: the folder, its annotations or the first images of a split are missing.
        ValueError: an annotation file is not COCO.
    """
    found = {}
    for split in find_splits(Path(folder).absolute()):
        name = PREFIX + split.name
        try:
            root = find_image_root(split.annotations, split.image_folders)
        except (OSError, ValueError):
            if needed is None or name in needed:
                raise
            root = split.image_folders[0]
        found[name] = (str(split.annotations), str(root))
    from detectron2.data import DatasetCatalog, MetadataCatalog

    for name in [name for name in DatasetCatalog.list() if name.startswith(PREFIX)]:
        DatasetCatalog.remove(name)
        if name in MetadataCatalog:
            MetadataCatalog.remove(name)
    for name, (json_file, image_root) in found.items():
        DatasetCatalog.register(name, partial(_load, name, json_file, image_root))
        MetadataCatalog.get(name).set(
            json_file=json_file, image_root=image_root, evaluator_type="coco"
        )
    return found


def adopt(name: str, *, labelled: bool = True) -> Annotations:
    """Read a registered dataset, refuse what cannot be used, and let detectron2 have it.

    detectron2's own names, and those that a user's code registered, as a COCO file or as a
    function, are read by us from here on. One that is not labelled has images alone.

    Raises:
        FileNotFoundError, ValueError: as `locate`, `dataset.reading.load_annotations` and
            `dataset.catalog.write_coco`.
    """
    from detectron2.data import DatasetCatalog

    if is_function(name):
        write_coco(name, labelled=labelled)
    json_file, image_root = locate(name)
    annotations = read_annotations(json_file, image_root)
    if is_written(json_file):
        annotations = replace(annotations, path=f"dataset {name!r}")
    if not labelled:
        annotations = annotations.unlabelled()
    annotations.refuse()
    if labelled:
        _name_classes(name, annotations)
    DatasetCatalog.remove(name)
    DatasetCatalog.register(name, partial(_load, name, json_file, image_root, labelled))
    return annotations


def is_coco(name: str) -> bool:
    """Whether a registered dataset is in COCO's format, or is brought into it by `adopt`."""
    from detectron2.data import MetadataCatalog

    return MetadataCatalog.get(name).get("evaluator_type") == "coco" or is_function(name)


def _load(
    name: str, json_file: str, image_root: str, labelled: bool = True
) -> list[dict[str, Any]]:
    """What detectron2 calls for a dataset's dicts."""
    annotations = load_annotations(json_file, image_root, labelled=labelled)
    if labelled:
        _name_classes(name, annotations)
    return dataset_dicts(annotations, image_root)


def _name_classes(name: str, annotations: Annotations) -> None:
    """Let detectron2 have the categories of the file, also where it knows others by that name."""
    found = {
        "thing_classes": list(annotations.categories.values()),
        "thing_dataset_id_to_contiguous_id": annotations.class_ids,
    }
    # There are as many colours as old classes.
    set_metadata(name, found, without=["thing_colors"])


def find_image_root(annotations: Path, candidates: tuple[Path, ...]) -> Path:
    """The first of some folders that holds one of the first images of an annotation file.

    Raises:
        FileNotFoundError: none does.
        ValueError: the file is not COCO.
    """
    names = _first_file_names(annotations)
    folders = {candidate: ImageFolder(candidate) for candidate in candidates}
    escapes: list[ValueError] = []
    # Some may be missing, and left out for that (DATASET.EXCLUDE).
    for name, (candidate, folder) in product(names, folders.items()):
        try:
            if folder.find(name) is not None:
                return candidate
        except ValueError as error:
            escapes.append(error)
    if len(escapes) == len(names) * len(candidates):
        read_annotations(annotations, candidates[-1]).images_alone().refuse()
        raise escapes[0]  # it names no image
    first = names[0]
    hints = (_hint(candidate, first) for candidate in candidates)
    raise FileNotFoundError(
        f"{annotations}: its first image {first!r} is in none of "
        + ", ".join(map(str, candidates))
        + next(filter(None, hints), "")
    )


def _hint(folder: Path, file_name: str) -> str:
    try:
        return ImageFolder(folder).hint(file_name)
    except ValueError:
        return ""  # an absolute name that lies in another of the folders


def _first_file_names(annotations: Path) -> list[str]:
    found = list(islice(_file_names(annotations), _LOOKED_FOR))
    if not found:
        read_annotations(annotations).images_alone().refuse()  # says why there is none
        raise ValueError(f"{annotations}: not COCO annotations, there is no image in `images`")
    return found


def _file_names(annotations: Path) -> Iterator[str]:
    for section, elements, is_array in iterate_sections(annotations):
        for element in elements if section == "images" and is_array else ():
            name = element.get("file_name") if isinstance(element, dict) else None
            if isinstance(name, str) and name:
                yield name


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
            "`image_root` and evaluator_type `coco` in its metadata, or, where a function gives "
            "its images, neither `json_file` nor another evaluator_type"
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
    if name.startswith(PREFIX):
        ours = [other for other in known if other.startswith(PREFIX)]
        message += "; of the folder in DATASET.FOLDER there are: " + (", ".join(ours) or "none")
        return message
    return f"{message} {OF_YOURS}"
