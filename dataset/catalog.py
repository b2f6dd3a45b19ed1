"""Data sets that a user's code registers as a function, written as the COCO file they stand for.

From there on they are like any other: the one reader reads the file, and what it refuses is
refused here too.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterable, Mapping
from multiprocessing.util import get_temp_dir
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from configs.imports import failure

_FORMS = (
    '{"file_name": "a.jpg", "image_id": 1, "height": 480, "width": 640, "annotations": [...]}, as '
    "detectron2 describes data sets"
)

# The folders of the files that this process wrote.
_WRITTEN: set[Path] = set()


def is_function(name: str) -> bool:
    """Whether a data set is registered as a function alone, and says nothing of another format."""
    from detectron2.data import DatasetCatalog, MetadataCatalog

    if name not in DatasetCatalog:
        return False
    metadata = MetadataCatalog.get(name)
    return not metadata.get("json_file") and metadata.get("evaluator_type") in (None, "coco")


def is_written(path: str) -> bool:
    """Whether a file is one of ours, which no user knows."""
    return Path(path).parent in _WRITTEN


def write_coco(name: str, *, labelled: bool = True) -> None:
    """Write what a registered function gives as a COCO file, and let detectron2 know where it is.

    The file is deleted when the process ends. Its image root is `image_root` of the metadata, or
    the folder that all images have in common, so that file names do not depend on the machine.

    Args:
        name: of the data set.
        labelled: whether it is to have classes.

    Raises:
        FileNotFoundError: the image root does not exist.
        ValueError: the function fails, or gives something else than detectron2's dicts with boxes;
            names data set, image and key.
    """
    from detectron2.data import DatasetCatalog, MetadataCatalog

    metadata = MetadataCatalog.get(name)
    classes = metadata.get("thing_classes") or []
    if labelled and not classes:
        raise ValueError(
            f"dataset {name!r}: its metadata lack the names of its classes; add "
            f"MetadataCatalog.get({name!r}).set(thing_classes=[...])"
        )
    try:
        images = DatasetCatalog.get(name)
    except Exception as error:
        raise ValueError(f"dataset {name!r}: its function fails: {failure(error)}") from error
    try:
        names = _file_names(images)
        root = os.path.abspath(metadata.get("image_root") or _common_folder(names))
        ids = _category_ids(len(classes), metadata.get("thing_dataset_id_to_contiguous_id"))
        document = _document(images, [_below(root, one) for one in names], ids, classes)
        text = json.dumps(document, default=_plain)
    except (TypeError, ValueError) as error:
        raise ValueError(f"dataset {name!r}: {error}") from error
    if not os.path.isdir(root):
        raise FileNotFoundError(f"dataset {name!r}: its images lie in {root}, which is no folder")
    # Deleted at the end of a process that another one started too, whose `atexit` never runs.
    folder = Path(mkdtemp(dir=get_temp_dir()))
    _WRITTEN.add(folder)
    path = folder / "annotations.json"
    path.write_text(text, encoding="utf-8")
    # Nobody will change it: the reader need not read a file of long ago twice.
    os.utime(path, (0, 0))
    set_metadata(name, {"json_file": str(path), "image_root": root, "evaluator_type": "coco"})


def set_metadata(name: str, values: Mapping[str, Any], *, without: Collection[str] = ()) -> None:
    """Let detectron2 have metadata of a data set, also where it has others by these names.

    Args:
        name: of the data set.
        values: by their names.
        without: names of what is of the old values, and goes with them.
    """
    from detectron2.data import MetadataCatalog

    metadata = MetadataCatalog.get(name)
    old = metadata.as_dict()
    if any(old.get(key, value) != value for key, value in values.items()):
        # Metadata cannot be changed, only made anew.
        kept = {key: value for key, value in old.items() if key not in {*values, *without}}
        MetadataCatalog.remove(name)
        metadata = MetadataCatalog.get(name).set(**kept)
    metadata.set(**values)


def _file_names(images: Any) -> list[str]:
    """The images' files, absolute."""
    if not isinstance(images, list):
        raise ValueError(f"its function gives {type(images).__name__}; expected a list of {_FORMS}")
    names = []
    for number, image in enumerate(images):
        file_name = image.get("file_name") if isinstance(image, dict) else None
        if not isinstance(file_name, str | os.PathLike) or not os.fspath(file_name):
            raise ValueError(f"its element {number} has no `file_name`; expected {_FORMS}")
        missing = [key for key in ("image_id", "height", "width") if image.get(key) is None]
        if missing:
            raise ValueError(f"{os.fspath(file_name)} has no `{missing[0]}`; expected {_FORMS}")
        names.append(os.path.abspath(file_name))
    return names


def _common_folder(names: Iterable[str]) -> str:
    folders = {os.path.dirname(name) for name in names}
    return os.path.commonpath(folders) if folders else os.curdir


def _below(root: str, path: str) -> str:
    """The name below the root; of what lies elsewhere the whole path, which the reader refuses."""
    return os.path.relpath(path, root) if path.startswith(os.path.join(root, "")) else path


def _category_ids(count: int, class_of: dict[int, int] | None) -> list[int]:
    """The ids of the classes: those of the metadata, where classes are numbered by them."""
    ids = sorted(class_of or {}, key=(class_of or {}).__getitem__)
    is_known = ids == sorted(ids) and [(class_of or {})[one] for one in ids] == list(range(count))
    return ids if is_known else list(range(count))


def _document(
    images: list[dict[str, Any]], names: list[str], ids: list[int], classes: list[str]
) -> dict[str, Any]:
    objects: list[dict[str, Any]] = []
    for image, name in zip(images, names, strict=True):
        for given in image.get("annotations") or ():
            made = _object(given, name, ids)
            objects.append({"id": len(objects) + 1, "image_id": image["image_id"], **made})
    return {
        "images": [
            {"id": x["image_id"], "file_name": name, "height": x["height"], "width": x["width"]}
            for x, name in zip(images, names, strict=True)
        ],
        "annotations": objects,
        "categories": [{"id": key, "name": one} for key, one in zip(ids, classes, strict=True)],
    }


def _object(given: Any, name: str, ids: list[int]) -> dict[str, Any]:
    from detectron2.structures import BoxMode

    if not isinstance(given, dict):
        raise ValueError(f"{name}: an annotation is {given!r}; expected a dict with `bbox`")
    box, mode = _plain(given.get("bbox")), given.get("bbox_mode")
    if mode not in (BoxMode.XYXY_ABS, BoxMode.XYWH_ABS):
        raise ValueError(
            f"{name}: `bbox_mode` is {mode!r}; expected BoxMode.XYXY_ABS or BoxMode.XYWH_ABS"
        )
    class_number = _plain(given.get("category_id"))
    if type(class_number) is not int or not 0 <= class_number < len(ids):
        raise ValueError(
            f"{name}: `category_id` is {class_number!r}; expected the number of one of the "
            f"{len(ids)} thing_classes, from 0"
        )
    if mode == BoxMode.XYXY_ABS and isinstance(box, list | tuple) and len(box) == 4:
        left, top, right, bottom = map(_plain, box)
        if not all(isinstance(side, int | float) for side in (left, top, right, bottom)):
            raise ValueError(f"{name}: `bbox` is {box!r}; expected left, top, right and bottom")
        box = [left, top, right - left, bottom - top]
    made = {"category_id": ids[class_number], "bbox": box}
    # The reader takes an area for what the box alone would not tell.
    return made | {key: given[key] for key in ("iscrowd", "area", "ignore") if key in given}


def _plain(value: Any) -> Any:
    """Python's own numbers and lists, of numpy's and PyTorch's."""
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, tuple):
        return list(value)
    if value is None or isinstance(value, str | int | float | list | dict):
        return value
    raise TypeError(f"{value!r} is no number and no text")
