"""Detectors of a few thousand weights, and inputs for them."""

from pathlib import Path
from typing import Any

import torch
import yaml
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from detectron2.structures import Boxes, Instances
from torch import Tensor, nn

from configs.loader import load_config

# A RetinaNet for images of 64 to 96 px and three classes.
DETECTOR: dict[str, Any] = {
    "VERSION": 2,
    "MODEL": {
        "DEVICE": "cpu",
        "META_ARCHITECTURE": "RetinaNet",
        "BACKBONE": {"NAME": "build_retinanet_resnet_fpn_backbone", "FREEZE_AT": 0},
        "RESNETS": {
            "DEPTH": 50,
            "NORM": "BN",
            "WIDTH_PER_GROUP": 4,
            "STEM_OUT_CHANNELS": 8,
            "RES2_OUT_CHANNELS": 8,
            "OUT_FEATURES": ["res3", "res4", "res5"],
        },
        "FPN": {"IN_FEATURES": ["res3", "res4", "res5"], "OUT_CHANNELS": 8},
        "ANCHOR_GENERATOR": {
            "SIZES": [[8], [16], [32], [64], [128]],
            "ASPECT_RATIOS": [[0.5, 1.0, 2.0]],
        },
        "RETINANET": {"NUM_CLASSES": 3, "NUM_CONVS": 1, "SCORE_THRESH_TEST": 0.001},
    },
    "TEST": {"DETECTIONS_PER_IMAGE": 5},
}

# What makes a Faster R-CNN of it, of the same width and with the same classes.
FASTER_RCNN: dict[str, Any] = {
    **{name: node for name, node in DETECTOR["MODEL"].items() if name != "RETINANET"},
    "META_ARCHITECTURE": "GeneralizedRCNN",
    "BACKBONE": {"NAME": "build_resnet_fpn_backbone", "FREEZE_AT": 0},
    "RESNETS": {**DETECTOR["MODEL"]["RESNETS"], "OUT_FEATURES": ["res2", "res3", "res4", "res5"]},
    "FPN": {"IN_FEATURES": ["res2", "res3", "res4", "res5"], "OUT_CHANNELS": 8},
    "RPN": {
        "IN_FEATURES": ["p2", "p3", "p4", "p5", "p6"],
        "PRE_NMS_TOPK_TRAIN": 100,
        "PRE_NMS_TOPK_TEST": 100,
        "POST_NMS_TOPK_TRAIN": 80,
        "POST_NMS_TOPK_TEST": 60,
        # Those of the RetinaNet, so that one reference serves both.
        "IOU_THRESHOLDS": [0.4, 0.5],
    },
    "ROI_HEADS": {
        "NAME": "StandardROIHeads",
        "IN_FEATURES": ["p2", "p3", "p4", "p5"],
        "NUM_CLASSES": 3,
        "SCORE_THRESH_TEST": 0.001,
        "BATCH_SIZE_PER_IMAGE": 32,
    },
    "ROI_BOX_HEAD": {
        "NAME": "FastRCNNConvFCHead",
        "NUM_FC": 1,
        "FC_DIM": 16,
        "POOLER_RESOLUTION": 4,
    },
}
_LAST_LAYERS = ("cls_score", "bbox_pred", "ctrness", "objectness_logits", "anchor_deltas")

# What of its MODEL another family changes.
FCOS: dict[str, Any] = {
    "META_ARCHITECTURE": "FCOS",
    "BACKBONE": {"NAME": "build_fcos_resnet_fpn_backbone", "FREEZE_AT": 0},
    "FCOS": {"NUM_CLASSES": 3, "NUM_CONVS": 1, "NORM": "", "SCORE_THRESH_TEST": 0.001},
}

_OTHER_NODES = ("ANCHOR_GENERATOR", "RETINANET")
FCOS_DETECTOR: dict[str, Any] = {
    **DETECTOR,
    "MODEL": {k: v for k, v in DETECTOR["MODEL"].items() if k not in _OTHER_NODES} | FCOS,
}


def write_config(path: Path, content: dict[str, Any]) -> CfgNode:
    """Write nodes as YAML and load them as a user would."""
    path.write_text(yaml.safe_dump(content))
    return load_config(str(path))


def random_detector(cfg: CfgNode, seed: int) -> nn.Module:
    """A detector with seeded random weights whose scores spread between 0 and 1."""
    model = build_model(cfg)
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.named_parameters():
        if tensor.dim() > 1:
            # Untrained outputs would be large, and all scores 0 or 1.
            scale = 0.02 if name.split(".")[-2] in _LAST_LAYERS else 1.0
            std = scale * tensor[0].numel() ** -0.5
            tensor.data.normal_(std=std, generator=generator)
        elif "conv3.norm.weight" in name:
            # Small residual branches keep 50 untrained layers from overflowing.
            tensor.data.fill_(0.2)
        elif name == "head.bbox_pred.bias" and hasattr(model.head, "ctrness"):
            # FCOS gives distances to the sides of a box: most of them not negative.
            tensor.data.fill_(2.0)
    return model


def random_batch(sizes: list[tuple[int, int]], seed: int = 0) -> list[dict[str, Any]]:
    """detectron2 inputs with one or two objects each; the last image has none."""
    generator = torch.Generator().manual_seed(seed)
    batch = []
    for number, (height, width) in enumerate(sizes):
        count = 0 if number == len(sizes) - 1 else 1 + number % 2
        batch.append(
            {
                "image": torch.randint(
                    0, 256, (3, height, width), dtype=torch.uint8, generator=generator
                ),
                "instances": _objects(height, width, count, generator),
                "height": height,
                "width": width,
            }
        )
    return batch


def _objects(height: int, width: int, count: int, generator: torch.Generator) -> Instances:
    corners: Tensor = torch.rand(count, 2, generator=generator) * 20
    instances = Instances((height, width))
    instances.gt_boxes = Boxes(torch.cat([corners, corners + 30], dim=1))
    instances.gt_classes = torch.randint(0, 3, (count,), generator=generator)
    return instances
