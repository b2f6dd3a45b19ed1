"""Which images a model is trained on, and what it takes of a rendered view."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import get_detection_dataset_dicts
from torch import Tensor

from configs.loader import settings
from dataset.registry import locate
from dataset.subset import planned_images


def training_images(cfg: CfgNode) -> list[dict[str, Any]]:
    """The images of DATASETS.TRAIN that detectron2 would train on, as its dataset dicts.

    Raises:
        ValueError: none is left after filtering.
    """
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
    dataset = settings(cfg).dataset
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
