"""COCO evaluation of a detector, with detectron2's loader, loop and evaluator."""

from __future__ import annotations

import json
import math
import uuid
from collections import OrderedDict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog, build_detection_test_loader
from detectron2.evaluation import COCOEvaluator, inference_on_dataset, print_csv_format
from detectron2.utils import comm
from torch import nn

from dataset.forms import coco_ground_truth
from dataset.reading import Annotations, load_annotations
from dataset.registry import is_coco, locate

from .images import ImageMapper
from .voc_rule import METRIC, VocEvaluator, voc_evaluator
from .workers import watch_stock_loader


def evaluate(cfg: CfgNode, model: nn.Module) -> OrderedDict[str, dict[str, float]]:
    """Evaluate on every dataset of `DATASETS.TEST`.

    Returns:
        `{dataset: {"AP": ..., "AP50": ..., ...}}`, in percent, of a set that `dataset voc` wrote
        also `AP50-VOC`, by VOC's own rule; empty on ranks other than the main.
    """
    results: OrderedDict[str, dict[str, float]] = OrderedDict()
    for name in cfg.DATASETS.TEST:
        stock = build_detection_test_loader(cfg, name, mapper=ImageMapper(cfg, is_train=False))
        loader = watch_stock_loader(stock, cfg, is_train=False)
        was_training = model.training
        judges = [coco_evaluator(cfg, name), *_of_voc(name)]
        found = inference_on_dataset(model, loader, judges)
        model.train(was_training)
        if comm.is_main_process():
            print_csv_format(found)
            results[name] = known_numbers(found["bbox"]) | found.get("voc", {})
    return results


def _of_voc(dataset_name: str) -> list[VocEvaluator]:
    """What judges by VOC's own rule, where a dataset has what that needs."""
    if not is_coco(dataset_name):
        return []
    found = voc_evaluator(load_annotations(locate(dataset_name)[0]))
    return [found] if found else []


def known_numbers(metrics: dict[str, float]) -> dict[str, float]:
    """Metrics without NaN: no prediction at all is an AP of 0; no object of a size is no metric."""
    known = {name: value for name, value in metrics.items() if not math.isnan(value)}
    return {"AP": 0.0, "AP50": 0.0, "AP75": 0.0, **known}


def coco_evaluator(cfg: CfgNode, dataset_name: str) -> COCOEvaluator:
    """detectron2's evaluator on pycocotools' own, official evaluation.

    Its ground truth is what training sees; that of a dataset which a user's own code registered,
    and which is no COCO file, is detectron2's.
    """
    options: dict[str, Any] = {
        "distributed": comm.get_world_size() > 1,
        "output_dir": str(Path(cfg.OUTPUT_DIR) / "inference" / dataset_name),
    }
    if is_coco(dataset_name):
        return box_evaluator(load_annotations(locate(dataset_name)[0]), **options)
    return COCOEvaluator(dataset_name, tasks=("bbox",), use_fast_impl=False, **options)


def box_evaluator(annotations: Annotations, **options: Any) -> COCOEvaluator:
    """detectron2's evaluator of boxes against annotations as the one reader has them.

    Args:
        annotations: a file that is not refused.
        options: of `COCOEvaluator`.
    """
    # The evaluator asks for a file by the name of a dataset, and reads it at once.
    name = f"ground-truth-{uuid.uuid4().hex}"
    with TemporaryDirectory() as folder:
        path = Path(folder) / "ground_truth.json"
        path.write_text(json.dumps(coco_ground_truth(annotations)))
        MetadataCatalog.get(name).set(
            json_file=str(path),
            thing_classes=list(annotations.categories.values()),
            thing_dataset_id_to_contiguous_id=annotations.class_ids,
        )
        try:
            return COCOEvaluator(name, tasks=("bbox",), use_fast_impl=False, **options)
        finally:
            MetadataCatalog.remove(name)


def summary(results: OrderedDict[str, dict[str, float]]) -> str:
    """One line for every dataset."""
    return "\n".join(
        f"{name}: AP {r['AP']:.2f}  AP50 {r['AP50']:.2f}  AP75 {r['AP75']:.2f}"
        + (f"  {METRIC} {r[METRIC]:.2f}" if METRIC in r else "")
        for name, r in results.items()
    )
