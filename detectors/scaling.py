"""What SOLVER.REFERENCE_WORLD_SIZE makes of a config, and whether its step can be split."""

from __future__ import annotations

import logging

import torch
from detectron2.config import CfgNode
from detectron2.engine import DefaultTrainer
from detectron2.utils import comm

from configs.nodes import NODES

logger = logging.getLogger(__name__)

# Numbers of steps that rounding must not turn into 0: evaluation would be off, a period of 0 fails.
_STOCK = (("SOLVER", "MAX_ITER"), ("SOLVER", "CHECKPOINT_PERIOD"), ("TEST", "EVAL_PERIOD"))
# What the name of every number of steps in our nodes, and in those of the user's, ends with.
_STEPS = "_ITERS"


def fitted_to_ranks(cfg: CfgNode) -> CfgNode:
    """The config of this many ranks; to be called before anything is built from one.

    With SOLVER.REFERENCE_WORLD_SIZE, the ranks that a config was written for, detectron2 keeps the
    images of each rank: batch and learning rate grow with the ranks, steps and warm-up shrink. So
    do the numbers of steps in our nodes and in those of the user's, such as DISTILL.WARMUP_ITERS.
    Applied again, it changes nothing.

    Returns:
        The same config, or a changed copy.

    Raises:
        ValueError: the batch cannot be split among the ranks and the parts of a step, or the GPU
            has no such arithmetic.
    """
    ranks, reference = comm.get_world_size(), cfg.SOLVER.REFERENCE_WORLD_SIZE
    if reference not in (0, ranks):
        _check_reference(cfg)
        scaled = DefaultTrainer.auto_scale_workers(cfg, ranks)
        frozen = scaled.is_frozen()
        scaled.defrost()
        ours = [(node, key) for node in NODES if node in cfg for key in _steps_of(cfg[node])]
        for node, key in ours:
            scaled[node][key] = round(cfg[node][key] * reference / ranks)
        for node, key in (*_STOCK, *ours):
            if cfg[node][key] > 0:
                scaled[node][key] = max(1, scaled[node][key])
        for node, key in ours:
            if cfg[node][key]:
                logger.info("%s.%s is scaled to %d", node, key, scaled[node][key])
        if frozen:
            scaled.freeze()
        cfg = scaled
    _check_solver(cfg, ranks)
    return cfg


def _steps_of(node: CfgNode) -> list[str]:
    return [key for key, value in node.items() if key.endswith(_STEPS) and type(value) is int]


def _check_reference(cfg: CfgNode) -> None:
    batch, reference = cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.REFERENCE_WORLD_SIZE
    if batch % reference:
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {batch}; expected a multiple of "
            f"SOLVER.REFERENCE_WORLD_SIZE {reference}, the ranks that it is meant for"
        )


def _check_solver(cfg: CfgNode, ranks: int) -> None:
    parts, amp = cfg.SOLVER.ACCUMULATE, cfg.SOLVER.AMP
    on_gpu = cfg.MODEL.DEVICE.startswith("cuda") and torch.cuda.is_available()
    if amp.ENABLED and amp.DTYPE == "bfloat16" and on_gpu and not torch.cuda.is_bf16_supported():
        raise ValueError(
            f"SOLVER.AMP.DTYPE bfloat16: {torch.cuda.get_device_name()} has no such arithmetic; "
            "take float16"
        )
    if cfg.SOLVER.IMS_PER_BATCH % (ranks * parts):
        raise ValueError(
            f"SOLVER.IMS_PER_BATCH is {cfg.SOLVER.IMS_PER_BATCH}; expected a multiple of the "
            f"{ranks} ranks" + (f" times SOLVER.ACCUMULATE {parts}" if parts > 1 else "")
        )
