"""COCO evaluation of a detector, with detectron2's loader, loop and evaluator."""

from __future__ import annotations

import math
from collections import OrderedDict
from pathlib import Path

from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn

from .workers import watch_stock_loader


def evaluate(cfg: CfgNode, model: nn.Module) -> OrderedDict[str, dict[str, float]]:
    """Evaluate on every dataset of `DATASETS.TEST`.

    Returns:
        `{dataset: {"AP": ..., "AP50": ..., ...}}`, in percent; empty on ranks other than the main.
    """
    results: OrderedDict[str, dict[str, float]] = OrderedDict()
    for name in cfg.DATASETS.TEST:
        loader = watch_stock_loader(build_detection_test_loader(cfg, name), cfg, is_train=False)
        was_training = model.training
        found = inference_on_dataset(model, loader, coco_evaluator(cfg, name))
        model.train(was_training)
        if comm.is_main_process():
            print_csv_format(found)
            results[name] = known_numbers(found["bbox"])
    return results


def known_numbers(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics without NaN: no prediction at all is an AP of 0; no object of a size is no metric."""
    known = {name: value for name, value in metrics.items() if not math.isnan(value)}
    return {"AP": 0.0, "AP50": 0.0, "AP75": 0.0, **known}


def coco_evaluator(cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
    """detectron2's evaluator on pycocotools' own, official evaluation."""
    return COCOEvaluator(
        dataset_name,
        tasks=("bbox",),
        distributed=comm.get_world_size() > 1,
        output_dir=str(Path(cfg.OUTPUT_DIR) / "inference" / dataset_name),
        use_fast_impl=False,
    )


def summary(results: OrderedDict[str, dict[str, float]]) -> str:
    """One line for every dataset."""
    return "\n".join(
        f"{name}: AP {r['AP']:.2f}  AP50 {r['AP50']:.2f}  AP75 {r['AP75']:.2f}"
        for name, r in results.items()
    )
