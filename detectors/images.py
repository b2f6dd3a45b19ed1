"""From a rendered view to what a model takes."""

from __future__ import annotations

import numpy as np
import torch
from detectron2.config import CfgNode
from torch import Tensor


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
