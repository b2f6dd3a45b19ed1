"""How large detectors are, and how fast: side by side, so that other work falls on all alike."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.data import build_detection_test_loader
from torch import nn

from configs.loader import load_config
from detectors import load_model
from detectors.command import register_data
from detectors.images import ImageMapper


@dataclass(frozen=True, kw_only=True)
class Measured:
    """Parameters of a detector, and the median time that an image takes, in milliseconds."""

    parameters: int
    ms_per_image: float


def measure(models: Mapping[str, tuple[Path, Path]], num_images: int = 30) -> dict[str, Measured]:
    """Detect on validation images one at a time, from the pixels of the view to boxes.

    Args:
        models: name to config and weights.
        num_images: how many, at most.
    """
    loaded = {name: _load(*files, num_images) for name, files in models.items()}
    seconds: dict[str, list[float]] = {name: [] for name in loaded}
    images = min(len(items) for _, items in loaded.values())
    # The first round warms up.
    for counts, place in itertools.product((False, True), range(images)):
        for name, (model, items) in loaded.items():
            taken = _seconds(model, items[place])
            if counts:
                seconds[name].append(taken)
    return {
        name: Measured(
            parameters=sum(one.numel() for one in model.parameters()),
            ms_per_image=1000 * statistics.median(seconds[name]),
        )
        for name, (model, _) in loaded.items()
    }


def _load(config: Path, weights: Path, num_images: int) -> tuple[nn.Module, list[Any]]:
    cfg = load_config(str(config), ["MODEL.WEIGHTS", str(weights)])
    register_data(cfg, use=("TEST",), images=False)
    mapper = ImageMapper(cfg, is_train=False)
    loader = build_detection_test_loader(cfg, cfg.DATASETS.TEST[0], mapper=mapper)
    return load_model(cfg), list(itertools.islice(loader, num_images))


@torch.no_grad()
def _seconds(model: nn.Module, batch: Any) -> float:
    start = time.perf_counter()
    model(batch)
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter() - start
