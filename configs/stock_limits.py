"""Limits of detectron2's own numbers and choices, which it checks late or not at all.

One table, key to rule; `check_limits` holds a config against it before anything runs. Nodes of
heads for more than boxes are not in it. What only the building of a model can tell, such as an
unknown backbone, is told there (`detectors.building`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from itertools import pairwise
from typing import Any

from configs.fcos_node import FCOS_DEFAULTS
from configs.imports import MODULE
from configs.rules import (
    Choice,
    Either,
    Flag,
    Nothing,
    Number,
    Place,
    Rule,
    Several,
    Text,
    Whole,
)

# Longest side of a view or an image, pixels; what a cache can hold.
MAX_SIDE = 65_535
# Channels of a feature map.
MAX_CHANNELS = 2**16
# What detectron2's file layer opens by itself.
WEIGHTS_SCHEMES = ("http", "https", "ftp", "detectron2", "catalog")
# numpy's seed has 32 bits, and the rank is added to it.
MAX_STOCK_SEED = 2**32 - 1 - 2**16

_SHARE = Number(at_most=1.0)
_POSITIVE = Number(above=0.0, at_most=1e9)
_NOT_NEGATIVE = Number(at_most=1e9)
_NAMES = Several(item=Text(needed=True), at_least=0)
_LEVELS = Several(item=Text(needed=True))
_SIZES = Several(item=_POSITIVE)
_NORMS = Choice(("FrozenBN", "BN", "SyncBN", "GN"))
_COUNTS = Several(item=Whole(1, 1024))
_FOUR = Several(item=_POSITIVE, at_least=4, at_most=4)
_IOU_LABELS = Several(item=Choice((-1, 0, 1)), at_least=2)
_IOU_THRESHOLDS = Several(item=Number(above=0.0, at_most=1.0))
_BOX_LOSSES = Choice(("smooth_l1", "giou", "diou", "ciou"))

LIMITS: dict[str, Rule] = {
    "IMPORTS": Several(item=MODULE, at_least=0),
    "OUTPUT_DIR": Place(),
    "SEED": Whole(-1, MAX_STOCK_SEED),
    "VIS_PERIOD": Whole(0),
    "DATALOADER.NUM_WORKERS": Whole(0, 1024),
    "DATALOADER.REPEAT_THRESHOLD": _SHARE,
    "DATALOADER.SAMPLER_TRAIN": Choice(("TrainingSampler", "RepeatFactorTrainingSampler")),
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": Whole(1),
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": Whole(1),
    "DATASETS.PROPOSAL_FILES_TEST": _NAMES,
    "DATASETS.PROPOSAL_FILES_TRAIN": _NAMES,
    "DATASETS.TEST": _NAMES,
    "DATASETS.TRAIN": _NAMES,
    "DATASETS.UNLABELED": _NAMES,
    "INPUT.CROP.SIZE": Several(item=_POSITIVE, at_least=2, at_most=2),
    "INPUT.CROP.TYPE": Choice(("relative_range", "relative", "absolute", "absolute_range")),
    "INPUT.FORMAT": Choice(("BGR", "RGB", "L", "YUV-BT.601")),
    "INPUT.MASK_FORMAT": Choice(("polygon", "bitmask")),
    "INPUT.MAX_SIZE_TEST": Whole(1, MAX_SIDE),
    "INPUT.MAX_SIZE_TRAIN": Whole(1, MAX_SIDE),
    # 0 leaves the size as it is.
    "INPUT.MIN_SIZE_TEST": Whole(0, MAX_SIDE),
    "INPUT.MIN_SIZE_TRAIN": Several(item=Whole(0, MAX_SIDE)),
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": Choice(("choice", "range")),
    "INPUT.RANDOM_FLIP": Choice(("horizontal", "vertical", "none")),
    "MODEL.ANCHOR_GENERATOR.ANGLES": Several(item=Several(item=Number(at_least=-360, at_most=360))),
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": Either(_SIZES, Several(item=_SIZES)),
    "MODEL.ANCHOR_GENERATOR.NAME": Text(needed=True),
    "MODEL.ANCHOR_GENERATOR.OFFSET": Number(below=1.0),
    "MODEL.ANCHOR_GENERATOR.SIZES": Either(_SIZES, Several(item=_SIZES)),
    "MODEL.BACKBONE.FREEZE_AT": Whole(0, 5),
    "MODEL.BACKBONE.NAME": Text(needed=True),
    "MODEL.DEVICE": Text(pattern=r"cpu|cuda(:\d{1,3})?", described="cpu, cuda or cuda:N"),
    "MODEL.FAMILY": Text(),
    "MODEL.FCOS.CENTER_SAMPLING_RADIUS": _POSITIVE,
    "MODEL.FPN.FUSE_TYPE": Choice(("sum", "avg")),
    "MODEL.FPN.IN_FEATURES": _NAMES,
    "MODEL.FPN.NORM": Text(),
    "MODEL.FPN.OUT_CHANNELS": Whole(1, MAX_CHANNELS),
    "MODEL.META_ARCHITECTURE": Text(needed=True),
    "MODEL.MOBILENET_V2.NORM": _NORMS,
    "MODEL.MOBILENET_V2.OUT_FEATURES": Several(item=Choice(("c2", "c3", "c4", "c5"))),
    "MODEL.MOBILENET_V2.WIDTH": Number(above=0.0, at_most=16.0),
    "MODEL.PIXEL_MEAN": Several(item=Number(at_least=-1e9, at_most=1e9)),
    "MODEL.PIXEL_STD": Several(item=_POSITIVE),
    "MODEL.REGNET.DEPTH": Whole(1, 1024),
    "MODEL.REGNET.GROUP_WIDTH": Whole(1, MAX_CHANNELS),
    "MODEL.REGNET.NORM": _NORMS,
    "MODEL.REGNET.OUT_FEATURES": _LEVELS,
    "MODEL.REGNET.SE_RATIO": _SHARE,
    "MODEL.REGNET.STEM_WIDTH": Whole(1, MAX_CHANNELS),
    "MODEL.REGNET.W_0": Whole(1, MAX_CHANNELS),
    "MODEL.REGNET.W_A": Number(at_most=MAX_CHANNELS),
    "MODEL.REGNET.W_M": Number(above=1.0, at_most=1e3),
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": Number(at_most=MAX_SIDE),
    "MODEL.PROPOSAL_GENERATOR.NAME": Text(needed=True),
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": Whole(1, MAX_CHANNELS),
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": Several(item=Flag(), at_least=4, at_most=4),
    "MODEL.RESNETS.DEPTH": Choice((18, 34, 50, 101, 152)),
    "MODEL.RESNETS.NORM": Text(),
    "MODEL.RESNETS.NUM_GROUPS": Whole(1, MAX_CHANNELS),
    "MODEL.RESNETS.OUT_FEATURES": _LEVELS,
    "MODEL.RESNETS.RES2_OUT_CHANNELS": Whole(1, MAX_CHANNELS),
    "MODEL.RESNETS.RES5_DILATION": Choice((1, 2)),
    "MODEL.RESNETS.STEM_OUT_CHANNELS": Whole(1, MAX_CHANNELS),
    "MODEL.RESNETS.WIDTH_PER_GROUP": Whole(1, MAX_CHANNELS),
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": _FOUR,
    # Negative: no balance between objects and background.
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": Number(at_least=-1.0, at_most=1.0),
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": Number(at_most=100.0),
    "MODEL.RETINANET.IN_FEATURES": _LEVELS,
    "MODEL.RETINANET.IOU_LABELS": _IOU_LABELS,
    "MODEL.RETINANET.IOU_THRESHOLDS": _IOU_THRESHOLDS,
    "MODEL.RETINANET.NMS_THRESH_TEST": _SHARE,
    "MODEL.RETINANET.NORM": Text(),
    "MODEL.RETINANET.NUM_CLASSES": Whole(1, 2**20),
    "MODEL.RETINANET.NUM_CONVS": Whole(1, 1024),
    "MODEL.RETINANET.PRIOR_PROB": Number(above=0.0, below=1.0),
    "MODEL.RETINANET.SCORE_THRESH_TEST": _SHARE,
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": _NOT_NEGATIVE,
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": Whole(1),
    "MODEL.SWIN.DEPTHS": _COUNTS,
    "MODEL.SWIN.DROP_PATH_RATE": Number(below=1.0),
    "MODEL.SWIN.EMBED_DIM": Whole(1, MAX_CHANNELS),
    "MODEL.SWIN.NUM_HEADS": _COUNTS,
    "MODEL.SWIN.OUT_FEATURES": Several(item=Choice(("p0", "p1", "p2", "p3"))),
    "MODEL.SWIN.WINDOW_SIZE": Whole(1, 1024),
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": _NOT_NEGATIVE,
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": _FOUR,
    "MODEL.ROI_BOX_HEAD.CONV_DIM": Whole(1, MAX_CHANNELS),
    "MODEL.ROI_BOX_HEAD.FC_DIM": Whole(1, MAX_CHANNELS),
    "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER": Number(at_most=100.0),
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": Whole(1, 2**20),
    "MODEL.ROI_BOX_HEAD.NAME": Text(),
    "MODEL.ROI_BOX_HEAD.NORM": Text(),
    "MODEL.ROI_BOX_HEAD.NUM_CONV": Whole(0, 1024),
    "MODEL.ROI_BOX_HEAD.NUM_FC": Whole(0, 1024),
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": Whole(1, 256),
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": Whole(0, 256),
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": Choice(
        ("ROIAlign", "ROIAlignRotated", "ROIAlignV2", "ROIPool")
    ),
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": _NOT_NEGATIVE,
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": Whole(1, 2**20),
    "MODEL.ROI_HEADS.IN_FEATURES": _LEVELS,
    "MODEL.ROI_HEADS.IOU_LABELS": _IOU_LABELS,
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": _IOU_THRESHOLDS,
    "MODEL.ROI_HEADS.NAME": Text(needed=True),
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": _SHARE,
    "MODEL.ROI_HEADS.NUM_CLASSES": Whole(1, 2**20),
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": _SHARE,
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": _SHARE,
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": Whole(1, 2**20),
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": _BOX_LOSSES,
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": _NOT_NEGATIVE,
    "MODEL.RPN.BBOX_REG_WEIGHTS": _FOUR,
    # -1: anchors beyond the image are used too.
    "MODEL.RPN.BOUNDARY_THRESH": Number(at_least=-1.0, at_most=1e9),
    # -1: as many channels as the pyramid.
    "MODEL.RPN.CONV_DIMS": Several(item=Whole(-1, MAX_CHANNELS)),
    "MODEL.RPN.HEAD_NAME": Text(needed=True),
    "MODEL.RPN.IN_FEATURES": _LEVELS,
    "MODEL.RPN.IOU_LABELS": _IOU_LABELS,
    "MODEL.RPN.IOU_THRESHOLDS": _IOU_THRESHOLDS,
    "MODEL.RPN.LOSS_WEIGHT": _NOT_NEGATIVE,
    "MODEL.RPN.NMS_THRESH": _SHARE,
    "MODEL.RPN.POSITIVE_FRACTION": _SHARE,
    "MODEL.RPN.POST_NMS_TOPK_TEST": Whole(1),
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": Whole(1),
    "MODEL.RPN.PRE_NMS_TOPK_TEST": Whole(1),
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": Whole(1),
    "MODEL.RPN.SMOOTH_L1_BETA": _NOT_NEGATIVE,
    "MODEL.WEIGHTS": Place(WEIGHTS_SCHEMES),
    "SOLVER.ACCUMULATE": Whole(1, 2**16),
    "SOLVER.AMP.DTYPE": Choice(("float16", "bfloat16")),
    "SOLVER.BASE_LR": Number(above=0.0, at_most=1e6),
    "SOLVER.BASE_LR_END": Number(at_most=1e6),
    "SOLVER.BIAS_LR_FACTOR": _NOT_NEGATIVE,
    "SOLVER.CHECKPOINT_PERIOD": Whole(1),
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": Choice(("value", "norm")),
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": _POSITIVE,
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": Either(_POSITIVE, Choice((float("inf"),))),
    "SOLVER.EMA_DECAY": Number(below=1.0),
    "SOLVER.GAMMA": Number(above=0.0, at_most=1.0),
    "SOLVER.IMS_PER_BATCH": Whole(1, 2**20),
    "SOLVER.LR_SCHEDULER_NAME": Choice(
        ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupStepWithFixedGammaLR")
    ),
    "SOLVER.MAX_ITER": Whole(1),
    "SOLVER.MOMENTUM": Number(below=1.0),
    "SOLVER.NUM_DECAYS": Whole(1),
    "SOLVER.OPTIMIZER": Choice(("SGD", "ADAMW")),
    # None, or the signal by which a scheduler announces the end, such as Slurm's --signal=USR1.
    "SOLVER.PREEMPTION_SIGNAL": Choice(("", "SIGUSR1", "SIGUSR2")),
    "SOLVER.REFERENCE_WORLD_SIZE": Whole(0, 2**20),
    "SOLVER.STEPS": Several(item=Whole(1), at_least=0),
    "SOLVER.WARMUP_FACTOR": _SHARE,
    "SOLVER.WARMUP_ITERS": Whole(0),
    "SOLVER.WARMUP_METHOD": Choice(("constant", "linear")),
    "SOLVER.WEIGHT_DECAY": _NOT_NEGATIVE,
    "SOLVER.WEIGHT_DECAY_BIAS": Either(_NOT_NEGATIVE, Nothing()),
    "SOLVER.WEIGHT_DECAY_NORM": Either(_NOT_NEGATIVE, Nothing()),
    "TEST.AUG.MAX_SIZE": Whole(1, MAX_SIDE),
    "TEST.AUG.MIN_SIZES": Several(item=Whole(1, MAX_SIDE)),
    "TEST.DETECTIONS_PER_IMAGE": Whole(1, 2**16),
    "TEST.EVAL_PERIOD": Whole(0),
    "TEST.KEYPOINT_OKS_SIGMAS": Several(item=_POSITIVE, at_least=0),
    "TEST.PATIENCE": Whole(0),
    "TEST.PRECISE_BN.NUM_ITER": Whole(1),
}

# What else the head of FCOS has, it has in common with RetinaNet's.
LIMITS |= {
    f"MODEL.FCOS.{name}": LIMITS[f"MODEL.RETINANET.{name}"]
    for name in FCOS_DEFAULTS
    if f"MODEL.FCOS.{name}" not in LIMITS
}


def check_limits(config: Mapping[str, Any]) -> None:
    """Hold every value of detectron2's against its limits.

    Args:
        config: nodes of keys, as a `CfgNode` is.

    Raises:
        ValueError: the first that is outside; its message begins with the key.
    """
    for key, value in leaves(config):
        rule = LIMITS.get(key)
        if rule is not None and not rule.accepts(value):
            raise ValueError(f"{key}: expected {rule.expected}, got {value!r}")
    for key, expected, is_kept in TOGETHER:
        if not is_kept(config):
            raise ValueError(f"{key}: expected {expected}, got {value_of(config, key)!r}")


def leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Give every key with its full name, and its value."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def value_of(config: Mapping[str, Any], key: str) -> Any:
    """The value of a key by its full name."""
    found: Any = config
    for name in key.split("."):
        found = found[name]
    return found


def _steps_ascend(config: Mapping[str, Any]) -> bool:
    steps = list(config["SOLVER"]["STEPS"])
    return all(early < late for early, late in pairwise(steps))


def _no_step_at_the_end(config: Mapping[str, Any]) -> bool:
    solver = config["SOLVER"]
    is_stepped = solver["LR_SCHEDULER_NAME"] == "WarmupMultiStepLR"
    return not is_stepped or solver["MAX_ITER"] not in solver["STEPS"]


def _range_has_two_ends(config: Mapping[str, Any]) -> bool:
    sizes = config["INPUT"]["MIN_SIZE_TRAIN"]
    is_range = config["INPUT"]["MIN_SIZE_TRAIN_SAMPLING"] == "range"
    return not is_range or (len(sizes) == 2 and sizes[0] <= sizes[1])


def _crop_fits(config: Mapping[str, Any]) -> bool:
    crop = config["INPUT"]["CROP"]
    return not crop["TYPE"].startswith("relative") or max(crop["SIZE"]) <= 1


def _falls(config: Mapping[str, Any]) -> bool:
    solver = config["SOLVER"]
    is_cosine = solver["LR_SCHEDULER_NAME"] == "WarmupCosineLR"
    return not is_cosine or solver["BASE_LR_END"] <= solver["BASE_LR"]


def _pixels_match(config: Mapping[str, Any]) -> bool:
    return len(config["MODEL"]["PIXEL_STD"]) == len(config["MODEL"]["PIXEL_MEAN"])


def _nesterov_has_momentum(config: Mapping[str, Any]) -> bool:
    return not config["SOLVER"]["NESTEROV"] or config["SOLVER"]["MOMENTUM"] > 0


def _patience_is_asked(config: Mapping[str, Any]) -> bool:
    test = config["TEST"]
    return not test["PATIENCE"] or test["EVAL_PERIOD"] > 0


# What is right only together with another key: key, what is expected, whether it is so.
TOGETHER: tuple[tuple[str, str, Callable[[Mapping[str, Any]], bool]], ...] = (
    ("SOLVER.STEPS", "steps in ascending order, each once", _steps_ascend),
    (
        "SOLVER.STEPS",
        "no step at SOLVER.MAX_ITER itself",
        _no_step_at_the_end,
    ),
    ("SOLVER.BASE_LR_END", "at most SOLVER.BASE_LR with WarmupCosineLR", _falls),
    ("SOLVER.NESTEROV", "False with SOLVER.MOMENTUM 0", _nesterov_has_momentum),
    (
        "INPUT.MIN_SIZE_TRAIN",
        "two sizes, ascending, for sampling `range`",
        _range_has_two_ends,
    ),
    ("INPUT.CROP.SIZE", "shares of at most 1 with a relative INPUT.CROP.TYPE", _crop_fits),
    (
        "TEST.PATIENCE",
        "0 where TEST.EVAL_PERIOD is 0, since nothing is evaluated in between (set that, too)",
        _patience_is_asked,
    ),
    ("MODEL.PIXEL_STD", "as many values as MODEL.PIXEL_MEAN", _pixels_match),
)
