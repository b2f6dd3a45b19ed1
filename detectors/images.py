"""Which images a model is trained on, how they are read, and what it takes of a rendered view."""

from __future__ import annotations

import copy
import logging
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, DatasetMapper, get_detection_dataset_dicts
from detectron2.data.transforms import AugInput, Transform
from torch import Tensor

from configs.wording import listed
from dataset.pixels import ImageError, read_pixels
from dataset.sets import find_sets, id_among_several, joined
from dataset.subset import chosen_images, excluded_ids

from .setup import Setup

logger = logging.getLogger(__name__)

# Images that a message names; further ones are counted.
_NAMED = 3


def training_images(setup: Setup) -> list[dict[str, Any]]:
    """The images of DATASETS.TRAIN that detectron2 would train on, as its dataset dicts.

    Those of DATASET.EXCLUDE are left out, with a warning. Of several sets, images have the ids that
    `dataset.sets` gives them.

    Raises:
        ValueError: none is left after filtering.
    """
    cfg = setup.cfg
    names = tuple(cfg.DATASETS.TRAIN)
    images = [
        image if len(names) == 1 else _among_several(image, number)
        for number, name in enumerate(names)
        for image in _images_of(name, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS)
    ]
    return _stated(setup, images, f"DATASETS.TRAIN {names}")


def distilled_images(setup: Setup) -> list[dict[str, Any]]:
    """The `training_images`, then those of DATASETS.UNLABELED, each of which says `unlabelled`.

    Raises:
        ValueError: none is left of the ones, or of the others where there are such sets.
    """
    return [*training_images(setup), *_unlabelled_images(setup)]


def _unlabelled_images(setup: Setup) -> list[dict[str, Any]]:
    names = tuple(setup.cfg.DATASETS.UNLABELED)
    images = [
        {**_among_several(image, number), "unlabelled": True}
        for number, name in enumerate(names, start=len(setup.cfg.DATASETS.TRAIN))
        for image in DatasetCatalog.get(name)
    ]
    return _stated(setup, images, f"DATASETS.UNLABELED {names}") if names else []


def _stated(setup: Setup, images: list[dict[str, Any]], source: str) -> list[dict[str, Any]]:
    """Those of the images that DATASET chooses and does not leave out."""
    dataset = setup.settings.dataset
    chosen, excluded = _stated_ids(setup)
    if chosen is not None:
        images = [x for x in images if x["image_id"] in chosen]
    if not images:
        raise ValueError(
            f"{source}: no image to train on is among those of DATASET.IMAGE_LIST and "
            "DATASET.MAX_IMAGES"
        )
    return leave_out(images, excluded, f"DATASET.EXCLUDE {dataset.exclude}")


def _images_of(name: str, *, filter_empty: bool) -> list[dict[str, Any]]:
    """What detectron2 would train on of one set."""
    try:
        images: list[dict[str, Any]] = get_detection_dataset_dicts([name], filter_empty)
    except AssertionError as error:
        reason = str(error)
        if reason.startswith("No valid data found"):
            reason = (
                "no image has an object to train on; annotate some, or train on images without "
                "objects with DATALOADER.FILTER_EMPTY_ANNOTATIONS False"
            )
        raise ValueError(f"DATASETS.TRAIN {name!r}: {reason}") from error
    return images


def _among_several(image: dict[str, Any], number: int) -> dict[str, Any]:
    # A set in a format of its own may name images by text, which only plain training takes.
    is_number = isinstance(image["image_id"], int)
    own = image["image_id"]
    return {**image, "image_id": id_among_several(own, number) if is_number else own}


def some_places(
    images: Sequence[dict[str, Any]], *, count: int, image_ids: Sequence[int] = ()
) -> list[int]:
    """Places of images to look at: those of some ids, or `count` evenly spread ones without ids.

    Args:
        images: detectron2's dataset dicts.
        count: how many, at most.
        image_ids: in the order that is wanted.

    Raises:
        ValueError: no image has one of the ids.
    """
    if not image_ids:
        return np.linspace(0, len(images) - 1, min(count, len(images))).astype(int).tolist()
    place_of = {image["image_id"]: place for place, image in enumerate(images)}
    unknown = [str(one) for one in image_ids if one not in place_of]
    if unknown:
        raise ValueError(
            f"--image-id {', '.join(unknown)}: not among the {len(images)} images to train on, "
            f"whose ids are {min(place_of)} to {max(place_of)}; images may be left out for having "
            "no objects (DATALOADER.FILTER_EMPTY_ANNOTATIONS), by DATASET, or by the cache"
        )
    return [place_of[one] for one in image_ids]


def leave_out(
    images: list[dict[str, Any]], excluded: Collection[int], source: str
) -> list[dict[str, Any]]:
    """Leave images out of a training, with a warning that counts them and names the first.

    Args:
        images: detectron2's dataset dicts.
        excluded: ids of images that are not trained on.
        source: who says so.

    Raises:
        ValueError: no image is left.
    """
    left_out = set(excluded)
    ids = [x["image_id"] for x in images if x["image_id"] in left_out]
    if not ids:
        return images
    kept = [x for x in images if x["image_id"] not in left_out]
    if not kept:
        raise ValueError(f"{source} leaves out all {len(images)} images: none is left to train on")
    named = listed(map(str, sorted(ids)), shown=_NAMED)
    logger.warning(
        "%s leaves out %d of %d training images: %s", source, len(ids), len(images), named
    )
    return kept


def _stated_ids(setup: Setup) -> tuple[set[int] | None, set[int]]:
    """Ids that DATASET chooses, None for all, and those that it leaves out."""
    dataset = setup.settings.dataset
    if not (dataset.image_list or dataset.max_images or dataset.exclude):
        return None, set()
    # The plan chooses among all images, with and without objects.
    sets = find_sets(setup.cfg.DATASETS.TRAIN, setup.cfg.DATASETS.UNLABELED)
    chosen = joined(chosen_images(sets, dataset)).ids
    return set(chosen.tolist()), set(excluded_ids(sets, dataset).tolist())


class ImageMapper(DatasetMapper):
    """detectron2's mapper for boxes, except that images are read as everywhere else here.

    What cannot be read, or has another size than its annotations say, is an error with its name.
    """

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Turn an image of a data set into an input of the model.

        Raises:
            FileNotFoundError, OSError, ImageError: as `dataset.pixels.read_pixels`, or nothing
                would be left of the image.
        """
        item = copy.deepcopy(dataset_dict)
        # A data set that a user's own code registered may leave the size out.
        known = "height" in item and "width" in item
        size = (item["height"], item["width"]) if known else None
        pixels = read_pixels(item["file_name"], size, self.image_format)
        item["height"], item["width"] = pixels.shape[:2]
        view = AugInput(pixels)
        transforms = self._augment(view, item["file_name"])
        item["image"] = torch.as_tensor(np.ascontiguousarray(view.image.transpose(2, 0, 1)))
        if not self.is_train:
            item.pop("annotations", None)
        elif "annotations" in item:
            self._transform_annotations(item, transforms, view.image.shape[:2])
        return item

    def _augment(self, view: AugInput, name: str) -> Transform:
        height, width = view.image.shape[:2]
        try:
            return self.augmentations(view)
        # Of a side of no pixels, Pillow and numpy say that and no more.
        except ValueError as error:
            keys = (
                "INPUT.MAX_SIZE_TRAIN or INPUT.CROP.SIZE"
                if self.is_train
                else "INPUT.MAX_SIZE_TEST"
            )
            raise ImageError(
                f"{name}: its {height}x{width} pixels (height x width) cannot be cropped and "
                f"resized ({error}); raise {keys}, or take the image out of the annotations"
            ) from error


def to_model_image(pixels_rgb: np.ndarray, cfg: CfgNode) -> Tensor:
    """Order a view's channels as the model wants them.

    Args:
        pixels_rgb: (H, W, 3) uint8, RGB.
        cfg: the model's config; `INPUT.FORMAT` is RGB or BGR.

    Returns:
        (3, H, W) uint8 tensor in `INPUT.FORMAT`.

    Raises:
        ValueError: another `INPUT.FORMAT`.
    """
    if cfg.INPUT.FORMAT == "BGR":
        pixels_rgb = pixels_rgb[..., ::-1]
    elif cfg.INPUT.FORMAT != "RGB":
        raise ValueError(f"INPUT.FORMAT is {cfg.INPUT.FORMAT!r}; expected BGR or RGB")
    return torch.from_numpy(np.ascontiguousarray(pixels_rgb.transpose(2, 0, 1)))
