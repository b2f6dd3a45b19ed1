"""detectron2's numbers and choices have limits, and are checked when the config is read."""

from pathlib import Path
from typing import Any

import detectron2
import pytest

from configs.fcos_node import FCOS_DEFAULTS
from configs.loader import default_config, load_config
from configs.stock_keys import stock_config
from configs.stock_limits import LIMITS, check_limits, leaves

ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"
NAN, INF, LARGE = float("nan"), float("inf"), 10**12

# Read by detectors that are not distilled, or not by us at all.
OUTSIDE = (
    "GLOBAL.",
    "MODEL.PANOPTIC_FPN.",
    "MODEL.ROI_BOX_CASCADE_HEAD.",
    "MODEL.ROI_KEYPOINT_HEAD.",
    "MODEL.ROI_MASK_HEAD.",
    "MODEL.SEM_SEG_HEAD.",
    "TEST.EXPECTED_RESULTS",
    "VERSION",
)

# Key to values below its limits, above them, and of a wrong type.
REFUSED: dict[str, list[Any]] = {
    "IMPORTS": ["my_data", ("a/b",), ("a.py",), ("",), (3,)],
    "OUTPUT_DIR": ["s3://bucket/output", 3],
    "SEED": [-2, LARGE, 1.5],
    "VIS_PERIOD": [-1, LARGE, "often"],
    "DATALOADER.NUM_WORKERS": [-1, 1025, 1.0],
    "DATALOADER.REPEAT_THRESHOLD": [-0.1, 1.1, NAN, "x"],
    "DATALOADER.SAMPLER_TRAIN": ["RandomSampler", "", 1],
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TEST": [0, LARGE, None],
    "DATASETS.PRECOMPUTED_PROPOSAL_TOPK_TRAIN": [0, LARGE, None],
    "DATASETS.PROPOSAL_FILES_TEST": [(1,), None],
    "DATASETS.PROPOSAL_FILES_TRAIN": [(1,), None],
    "DATASETS.TEST": [("",), (1,), None],
    "DATASETS.TRAIN": [("",), (1,), None],
    "DATASETS.UNLABELED": [("",), (1,), None],
    "INPUT.CROP.SIZE": [[0.0, 0.5], [0.5], [0.5, 0.5, 0.5], [2.0, 2.0], None],
    "INPUT.CROP.TYPE": ["square", 1],
    "INPUT.FORMAT": ["CMYK", "", 1],
    "INPUT.MASK_FORMAT": ["png", 1],
    "INPUT.MAX_SIZE_TEST": [0, LARGE, 1.5],
    "INPUT.MAX_SIZE_TRAIN": [0, LARGE, 1.5],
    "INPUT.MIN_SIZE_TEST": [-1, LARGE, 1.5],
    "INPUT.MIN_SIZE_TRAIN": [(), (-1,), (LARGE,), (1.5,), None],
    "INPUT.MIN_SIZE_TRAIN_SAMPLING": ["any", 1],
    "INPUT.RANDOM_FLIP": ["both", True],
    "MODEL.ANCHOR_GENERATOR.ANGLES": [[], [[361]], [["x"]]],
    "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS": [[], [[]], [[0.0]], [[LARGE]], [["x"]]],
    "MODEL.ANCHOR_GENERATOR.NAME": ["", 1],
    "MODEL.ANCHOR_GENERATOR.OFFSET": [-0.1, 1.0, NAN, "x"],
    "MODEL.ANCHOR_GENERATOR.SIZES": [[], [[]], [[0]], [[LARGE]], [["x"]]],
    "MODEL.BACKBONE.FREEZE_AT": [-1, 6, 1.0],
    "MODEL.BACKBONE.NAME": ["", 1],
    "MODEL.DEVICE": ["foo", "cuda:", "cuda:x", "CPU", "", 0],
    "MODEL.FAMILY": [None, 1],
    "MODEL.FCOS.CENTER_SAMPLING_RADIUS": [0.0, -1.0, 1e10, NAN, "x"],
    "MODEL.FPN.FUSE_TYPE": ["max", 1],
    "MODEL.FPN.IN_FEATURES": [[""], [3], None],
    "MODEL.FPN.NORM": [None, 1],
    "MODEL.FPN.OUT_CHANNELS": [0, LARGE, 1.5],
    "MODEL.META_ARCHITECTURE": ["", 1],
    "MODEL.MOBILENET_V2.NORM": ["", "LN", 1],
    "MODEL.MOBILENET_V2.OUT_FEATURES": [[], ["c1"], ["res3"], [3]],
    "MODEL.MOBILENET_V2.WIDTH": [0.0, 17.0, NAN, "x"],
    "MODEL.PIXEL_MEAN": [[], [NAN], [LARGE], ["x"]],
    "MODEL.PIXEL_STD": [[], [0.0, 1.0, 1.0], [LARGE] * 3, ["x"], [1.0]],
    "MODEL.REGNET.DEPTH": [0, LARGE, 1.5],
    "MODEL.REGNET.GROUP_WIDTH": [0, LARGE, 1.5],
    "MODEL.REGNET.NORM": ["", "LN", 1],
    "MODEL.REGNET.OUT_FEATURES": [[], [""], [3]],
    "MODEL.REGNET.SE_RATIO": [-0.1, 1.1, NAN, "x"],
    "MODEL.REGNET.STEM_WIDTH": [0, LARGE, 1.5],
    "MODEL.REGNET.W_0": [0, LARGE, 1.5],
    "MODEL.REGNET.W_A": [-0.1, LARGE, NAN, "x"],
    "MODEL.REGNET.W_M": [1.0, LARGE, NAN, "x"],
    "MODEL.PROPOSAL_GENERATOR.MIN_SIZE": [-1, LARGE, "x"],
    "MODEL.PROPOSAL_GENERATOR.NAME": ["", 1],
    "MODEL.RESNETS.DEFORM_NUM_GROUPS": [0, LARGE, 1.5],
    "MODEL.RESNETS.DEFORM_ON_PER_STAGE": [[False] * 3, [0] * 4, [False] * 5],
    "MODEL.RESNETS.DEPTH": [17, 77, 50.0],
    "MODEL.RESNETS.NORM": [None, 1],
    "MODEL.RESNETS.NUM_GROUPS": [0, LARGE, 1.5],
    "MODEL.RESNETS.OUT_FEATURES": [[], [""], [3]],
    "MODEL.RESNETS.RES2_OUT_CHANNELS": [0, LARGE, 1.5],
    "MODEL.RESNETS.RES5_DILATION": [0, 3, True],
    "MODEL.RESNETS.STEM_OUT_CHANNELS": [0, LARGE, 1.5],
    "MODEL.RESNETS.WIDTH_PER_GROUP": [0, LARGE, 1.5],
    "MODEL.RETINANET.BBOX_REG_LOSS_TYPE": ["l2", 1],
    "MODEL.RETINANET.BBOX_REG_WEIGHTS": [(1.0,), (0.0,) * 4, (LARGE,) * 4, ("x",) * 4, (1.0,) * 5],
    "MODEL.RETINANET.FOCAL_LOSS_ALPHA": [-1.1, 1.1, NAN, "x"],
    "MODEL.RETINANET.FOCAL_LOSS_GAMMA": [-0.1, 101.0, NAN, "x"],
    "MODEL.RETINANET.IN_FEATURES": [[], [""], [3]],
    "MODEL.RETINANET.IOU_LABELS": [[0], [0, 2], [0, "x"]],
    "MODEL.RETINANET.IOU_THRESHOLDS": [[], [0.0], [1.1], ["x"]],
    "MODEL.RETINANET.NMS_THRESH_TEST": [-0.1, 1.1, NAN, "x"],
    "MODEL.RETINANET.NORM": [None, 1],
    "MODEL.RETINANET.NUM_CLASSES": [0, LARGE, 1.5, True],
    "MODEL.RETINANET.NUM_CONVS": [0, LARGE, 1.5],
    "MODEL.RETINANET.PRIOR_PROB": [0.0, 1.0, NAN, "x"],
    "MODEL.RETINANET.SCORE_THRESH_TEST": [-0.1, 1.1, NAN, "x"],
    "MODEL.RETINANET.SMOOTH_L1_LOSS_BETA": [-0.1, 1e10, INF, "x"],
    "MODEL.RETINANET.TOPK_CANDIDATES_TEST": [0, LARGE, 1.5],
    "MODEL.SWIN.DEPTHS": [[], [0], [1.5]],
    "MODEL.SWIN.DROP_PATH_RATE": [-0.1, 1.0, NAN, "x"],
    "MODEL.SWIN.EMBED_DIM": [0, LARGE, 1.5],
    "MODEL.SWIN.NUM_HEADS": [[], [0], [1.5]],
    "MODEL.SWIN.OUT_FEATURES": [[], ["p4"], [3]],
    "MODEL.SWIN.WINDOW_SIZE": [0, LARGE, 1.5],
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_TYPE": ["l1", 1],
    "MODEL.ROI_BOX_HEAD.BBOX_REG_LOSS_WEIGHT": [-0.1, LARGE, "x"],
    "MODEL.ROI_BOX_HEAD.BBOX_REG_WEIGHTS": [
        [1.0] * 3,
        [1.0] * 5,
        [0.0] * 4,
        [LARGE] * 4,
        ["x"] * 4,
    ],
    "MODEL.ROI_BOX_HEAD.CONV_DIM": [0, LARGE, 1.5],
    "MODEL.ROI_BOX_HEAD.FC_DIM": [0, LARGE, 1.5],
    "MODEL.ROI_BOX_HEAD.FED_LOSS_FREQ_WEIGHT_POWER": [-0.1, LARGE, "x"],
    "MODEL.ROI_BOX_HEAD.FED_LOSS_NUM_CLASSES": [0, LARGE, 1.5],
    "MODEL.ROI_BOX_HEAD.NAME": [None, 1],
    "MODEL.ROI_BOX_HEAD.NORM": [None, 1],
    "MODEL.ROI_BOX_HEAD.NUM_CONV": [-1, LARGE, 1.5],
    "MODEL.ROI_BOX_HEAD.NUM_FC": [-1, LARGE, 1.5],
    "MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION": [0, LARGE, 1.5],
    "MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO": [-1, LARGE, 1.5],
    "MODEL.ROI_BOX_HEAD.POOLER_TYPE": ["max", 1],
    "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA": [-0.1, LARGE, "x"],
    "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": [0, LARGE, 1.5],
    "MODEL.ROI_HEADS.IN_FEATURES": [[], [""], [3]],
    "MODEL.ROI_HEADS.IOU_LABELS": [[0], [0, 2], [0, "x"]],
    "MODEL.ROI_HEADS.IOU_THRESHOLDS": [[], [0.0], [1.1], ["x"]],
    "MODEL.ROI_HEADS.NAME": ["", 1],
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": [-0.1, 1.1, "x"],
    "MODEL.ROI_HEADS.NUM_CLASSES": [0, LARGE, 1.5],
    "MODEL.ROI_HEADS.POSITIVE_FRACTION": [-0.1, 1.1, "x"],
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": [-0.1, 1.1, "x"],
    "MODEL.RPN.BATCH_SIZE_PER_IMAGE": [0, LARGE, 1.5],
    "MODEL.RPN.BBOX_REG_LOSS_TYPE": ["l1", 1],
    "MODEL.RPN.BBOX_REG_LOSS_WEIGHT": [-0.1, LARGE, "x"],
    "MODEL.RPN.BBOX_REG_WEIGHTS": [[1.0] * 3, [0.0] * 4, [LARGE] * 4, ["x"] * 4],
    "MODEL.RPN.BOUNDARY_THRESH": [-2, LARGE, "x"],
    "MODEL.RPN.CONV_DIMS": [[], [-2], [LARGE], [1.5]],
    "MODEL.RPN.HEAD_NAME": ["", 1],
    "MODEL.RPN.IN_FEATURES": [[], [""], [3]],
    "MODEL.RPN.IOU_LABELS": [[0], [0, 2], [0, "x"]],
    "MODEL.RPN.IOU_THRESHOLDS": [[], [0.0], [1.1], ["x"]],
    "MODEL.RPN.LOSS_WEIGHT": [-0.1, LARGE, "x"],
    "MODEL.RPN.NMS_THRESH": [-0.1, 1.1, "x"],
    "MODEL.RPN.POSITIVE_FRACTION": [-0.1, 1.1, "x"],
    "MODEL.RPN.POST_NMS_TOPK_TEST": [0, LARGE, 1.5],
    "MODEL.RPN.POST_NMS_TOPK_TRAIN": [0, LARGE, 1.5],
    "MODEL.RPN.PRE_NMS_TOPK_TEST": [0, LARGE, 1.5],
    "MODEL.RPN.PRE_NMS_TOPK_TRAIN": [0, LARGE, 1.5],
    "MODEL.RPN.SMOOTH_L1_BETA": [-0.1, LARGE, "x"],
    "MODEL.WEIGHTS": ["gopher://host/weights.pth", None],
    "SOLVER.ACCUMULATE": [0, LARGE, 1.5],
    "SOLVER.AMP.DTYPE": ["float32", "half", 16],
    "SOLVER.BASE_LR": [0.0, -1.0, 1e7, NAN, INF, "x"],
    "SOLVER.BASE_LR_END": [-1.0, 1e7, NAN, "x"],
    "SOLVER.BIAS_LR_FACTOR": [-1.0, 1e10, NAN, "x"],
    "SOLVER.CHECKPOINT_PERIOD": [0, -1, LARGE, 1.5],
    "SOLVER.CLIP_GRADIENTS.CLIP_TYPE": ["full", 1],
    "SOLVER.CLIP_GRADIENTS.CLIP_VALUE": [0.0, 1e10, INF, "x"],
    "SOLVER.CLIP_GRADIENTS.NORM_TYPE": [0.0, -INF, 1e10, NAN, "x"],
    "SOLVER.EMA_DECAY": [-0.1, 1.0, NAN, "x"],
    "SOLVER.GAMMA": [0.0, 1.1, NAN, "x"],
    "SOLVER.IMS_PER_BATCH": [0, -2, LARGE, 1.5, True],
    "SOLVER.LR_SCHEDULER_NAME": ["Cosine", 1],
    "SOLVER.MAX_ITER": [0, -1, LARGE, 1.5],
    "SOLVER.MOMENTUM": [-0.1, 1.0, NAN, "x"],
    "SOLVER.NUM_DECAYS": [0, LARGE, 1.5],
    "SOLVER.OPTIMIZER": ["ADAM", 1],
    "SOLVER.PREEMPTION_SIGNAL": ["SIGKILL", "USR1", 10],
    "SOLVER.REFERENCE_WORLD_SIZE": [-1, LARGE, 1.5],
    "SOLVER.STEPS": [(0,), (LARGE,), (1.5,), None, (20, 10), (10, 10), (40000,)],
    "SOLVER.WARMUP_FACTOR": [-0.1, 1.1, NAN, "x"],
    "SOLVER.WARMUP_ITERS": [-1, LARGE, 1.5],
    "SOLVER.WARMUP_METHOD": ["cosine", 1],
    "SOLVER.WEIGHT_DECAY": [-0.1, 1e10, NAN, None],
    "SOLVER.WEIGHT_DECAY_BIAS": [-0.1, 1e10, NAN, "x"],
    "SOLVER.WEIGHT_DECAY_NORM": [-0.1, 1e10, NAN, "x"],
    "TEST.AUG.MAX_SIZE": [0, LARGE, 1.5],
    "TEST.AUG.MIN_SIZES": [(), (0,), (LARGE,), (1.5,)],
    "TEST.DETECTIONS_PER_IMAGE": [0, -1, LARGE, 1.5],
    "TEST.EVAL_PERIOD": [-1, LARGE, 1.5],
    "TEST.KEYPOINT_OKS_SIGMAS": [[0.0], [LARGE], ["x"]],
    "TEST.PATIENCE": [-1, LARGE, 1.5],
    "TEST.PRECISE_BN.NUM_ITER": [0, LARGE, 1.5],
}
REFUSED |= {
    f"MODEL.FCOS.{name}": REFUSED[f"MODEL.RETINANET.{name}"]
    for name in FCOS_DEFAULTS
    if name != "CENTER_SAMPLING_RADIUS"
}


@pytest.mark.parametrize("key", list(LIMITS))
def test_a_value_outside_its_limits_is_refused_by_its_key(key: str) -> None:
    *parents, name = key.split(".")
    for value in REFUSED[key]:
        cfg = default_config()
        node = cfg
        for parent in parents:
            node = node[parent]
        node[name] = value
        with pytest.raises(ValueError) as error:
            check_limits(cfg)
        assert str(error.value).startswith(f"{key}: expected ")
        assert str(error.value).endswith(f"got {value!r}")


def test_every_number_and_choice_of_detectron2_has_limits_or_is_outside() -> None:
    without = [
        key
        for key, value in leaves(stock_config())
        if key not in LIMITS and not key.startswith(OUTSIDE) and not isinstance(value, bool)
    ]
    assert without == []
    assert REFUSED.keys() == LIMITS.keys()


def test_detectron2_s_own_configs_are_within_the_limits() -> None:
    check_limits(default_config())
    read = 0
    for path in sorted(ZOO.rglob("*.yaml")):
        load_config(str(path))
        read += 1
    assert read > 50


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("MODEL.DEVICE", "cuda:1"),
        ("MODEL.WEIGHTS", "detectron2://ImageNetPretrained/MSRA/R-50.pkl"),
        ("MODEL.ANCHOR_GENERATOR.SIZES", "[32, 64]"),
        ("SOLVER.STEPS", "()"),
        ("SOLVER.WEIGHT_DECAY_NORM", "None"),
        ("TEST.EVAL_PERIOD", "0"),
        ("INPUT.MIN_SIZE_TEST", "0"),
    ],
)
def test_values_that_detectron2_allows_pass(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("VERSION: 2\n")
    load_config(str(path), [key, value])


@pytest.mark.parametrize(
    ("overrides", "refused"),
    [
        (["SOLVER.MAX_ITER", "30000"], "SOLVER.STEPS: expected no step at SOLVER.MAX_ITER itself"),
        (["SOLVER.NESTEROV", "True", "SOLVER.MOMENTUM", "0"], "SOLVER.NESTEROV: expected False"),
        (
            ["SOLVER.LR_SCHEDULER_NAME", "WarmupCosineLR", "SOLVER.BASE_LR_END", "1"],
            "SOLVER.BASE_LR_END: expected at most SOLVER.BASE_LR",
        ),
        (
            ["INPUT.MIN_SIZE_TRAIN_SAMPLING", "range"],
            "INPUT.MIN_SIZE_TRAIN: expected two sizes",
        ),
        (["TEST.PATIENCE", "2"], "TEST.PATIENCE: expected 0 where TEST.EVAL_PERIOD is 0"),
        (["SOLVER.AMP.ENABLED", "None"], "SOLVER.AMP.ENABLED: expected bool"),
    ],
)
def test_what_does_not_go_together_is_refused(
    tmp_path: Path, overrides: list[str], refused: str
) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("VERSION: 2\n")
    with pytest.raises(ValueError) as error:
        load_config(str(path), overrides)
    assert refused in str(error.value)


def test_a_refusal_names_file_and_line_of_the_value(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("VERSION: 2\nSOLVER:\n  MAX_ITER: 0\n")
    with pytest.raises(ValueError) as error:
        load_config(str(path))
    assert str(error.value).startswith(f"{path}:3: SOLVER.MAX_ITER: expected an integer")
