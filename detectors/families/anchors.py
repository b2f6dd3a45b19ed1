"""Anchors of a batch's grid, kept from one batch to the next.

detectron2 makes them anew for every batch, on the host, and copies them level by level: each copy
waits for the GPU. Views come in few padded sizes, so the same grids come again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from detectron2.modeling.anchor_generator import DefaultAnchorGenerator
from detectron2.structures import Boxes
from torch import Tensor, nn

# Grids of one generator; each takes 3 MB at 800x1344 with nine anchors per position.
_MOST = 16
_KEPT: WeakKeyDictionary[nn.Module, OrderedDict[Any, Tensor]] = WeakKeyDictionary()


def anchors_of(generator: nn.Module, features: Sequence[Tensor]) -> Tensor:
    """The anchors of all levels, (R, 4) XYXY_ABS; not to be modified.

    Args:
        generator: of a detector. Those of one of the user's are made anew each time: they may
            depend on more than the sizes.
        features: L maps (N, C, H_l, W_l).
    """
    if type(generator) is not DefaultAnchorGenerator:
        return _made(generator, features)
    kept = _KEPT.setdefault(generator, OrderedDict())
    grids = tuple(tuple(level.shape[-2:]) for level in features)
    cells = next(generator.buffers())  # of one level
    # What is made in inference mode is of no use outside of it.
    key = (grids, cells.device, cells.dtype, torch.is_inference_mode_enabled())
    if key not in kept:
        kept[key] = _made(generator, features)
    kept.move_to_end(key)
    if len(kept) > _MOST:
        kept.popitem(last=False)
    return kept[key]


def _made(generator: nn.Module, features: Sequence[Tensor]) -> Tensor:
    found: Tensor = Boxes.cat(generator(list(features))).tensor
    return found
