"""Annotations as detectron2 and pycocotools take them, made of what the one reader read."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from dataset.image_files import ImageFolder, image_path
from dataset.reading import Annotations


def dataset_dicts(annotations: Annotations, root: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Make detectron2's dataset dicts, as its `load_coco_json` makes them, but without polygons.

    Args:
        annotations: a file that is not refused.
        root: the image folder.

    Returns:
        One dict for each image, by ascending id; its objects in the order of the file, with
        `bbox` as XYWH_ABS and `category_id` as class number.

    Raises:
        ValueError: a file name leads out of the root.
    """
    from detectron2.structures import BoxMode

    images, objects = annotations.images, annotations.objects
    classes = annotations.class_ids
    rows = np.searchsorted(images.ids, objects.image_ids)
    order = np.argsort(rows, kind="stable")
    columns = zip(
        objects.crowds[order].tolist(),
        objects.boxes_xywh_abs[order].tolist(),
        objects.category_ids[order].tolist(),
        strict=True,
    )
    made = (
        {
            "iscrowd": int(is_crowd),
            "bbox": box,
            "category_id": classes[category_id],
            "bbox_mode": BoxMode.XYWH_ABS,
        }
        for is_crowd, box, category_id in columns
    )
    return [
        {**image, "annotations": [next(made) for _ in range(count)]}
        for image, count in zip(
            _image_dicts(annotations, root),
            np.bincount(rows, minlength=len(images)).tolist(),
            strict=True,
        )
    ]


def _image_dicts(
    annotations: Annotations, root: str | os.PathLike[str]
) -> Iterator[dict[str, Any]]:
    folder = ImageFolder(root)
    for image_id, name, height, width in annotations.images:
        path = folder.find(name) or image_path(root, name)
        yield {"file_name": path, "height": height, "width": width, "image_id": image_id}


def coco_ground_truth(annotations: Annotations) -> dict[str, Any]:
    """Make the document that pycocotools evaluates against.

    Objects are numbered from 1: COCO's evaluation takes an object of the id 0 for none at all, so
    that every detection of it counts as false.

    Args:
        annotations: a file that is not refused.
    """
    objects = annotations.objects
    return {
        "info": {},
        "images": [
            {"id": image_id, "file_name": name, "height": height, "width": width}
            for image_id, name, height, width in annotations.images
        ],
        "annotations": [
            {
                "id": number,
                "image_id": image_id,
                "category_id": category_id,
                "bbox": box,
                "area": area,
                "iscrowd": int(is_crowd),
            }
            for number, (image_id, category_id, box, area, is_crowd) in enumerate(
                zip(
                    objects.image_ids.tolist(),
                    objects.category_ids.tolist(),
                    objects.boxes_xywh_abs.tolist(),
                    objects.areas.tolist(),
                    objects.crowds.tolist(),
                    strict=True,
                ),
                1,
            )
        ],
        "categories": [
            {"id": category_id, "name": name}
            for category_id, name in annotations.categories.items()
        ],
    }
