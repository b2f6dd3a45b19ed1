"""Which images a model is trained on, how they are read, and what it takes of a rendered view."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetMapper, get_detection_dataset_dicts
from detectron2.data.transforms import AugInput
from torch import Tensor

from dataset.pixels import read_pixels
from dataset.registry import locate
from dataset.subset import planned_images

from .setup import Setup


def training_images(setup: Setup) -> list[dict[str, Any]]:
    """The images of DATASETS.TRAIN that detectron2 would train on, as its dataset dicts.

    Raises:
        ValueError: none is left after filtering.
    """
    cfg, dataset = setup.cfg, setup.settings.dataset
    try:
        images = get_detection_dataset_dicts(
            cfg.DATASETS.TRAIN, filter_empty=cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS
        )
    except AssertionError as error:
        reason = str(error)
        if reason.startswith("No valid data found"):
            reason = (
                "no image has an object to train on; annotate some, or train on images without "
                "objects with DATALOADER.FILTER_EMPTY_ANNOTATIONS False"
            )
        raise ValueError(f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)}: {reason}") from error
    if dataset.image_list or dataset.max_images:
        # The plan chooses among all images, with and without objects.
        planned = [planned_images(locate(name)[0], dataset) for name in cfg.DATASETS.TRAIN]
        kept = {image_id for table in planned for image_id in table.ids.tolist()}
        images = [x for x in images if x["image_id"] in kept]
    if not images:
        raise ValueError(
            f"DATASETS.TRAIN {tuple(cfg.DATASETS.TRAIN)}: no image to train on is among those of "
            "DATASET.IMAGE_LIST and DATASET.MAX_IMAGES"
        )
    return images


class ImageMapper(DatasetMapper):
    """detectron2's mapper for boxes, except that images are read as everywhere else here.

    What cannot be read, or has another size than its annotations say, is an error with its name.
    """

    def __call__(self, dataset_dict: dict[str, Any]) -> dict[str, Any]:
        """Turn an image of a data set into an input of the model.

        Raises:
            FileNotFoundError, OSError, ImageError: as `dataset.pixels.read_pixels`.
        """
        item = copy.deepcopy(dataset_dict)
        # A data set that a user's own code registered may leave the size out.
        known = "height" in item and "width" in item
        size = (item["height"], item["width"]) if known else None
        pixels = read_pixels(item["file_name"], size, self.image_format)
        item["height"], item["width"] = pixels.shape[:2]
        view = AugInput(pixels)
        transforms = self.augmentations(view)
        item["image"] = torch.as_tensor(np.ascontiguousarray(view.image.transpose(2, 0, 1)))
        if not self.is_train:
            item.pop("annotations", None)
        elif "annotations" in item:
            self._transform_annotations(item, transforms, view.image.shape[:2])
        return item


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
