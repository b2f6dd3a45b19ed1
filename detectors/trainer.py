"""Training of a plain detector with detectron2's own loop, hooks, loader and checkpoints.

`Trainer` is `DefaultTrainer` with some differences: checkpoints are read safely and carry the
per-rank state, data parallelism also works without a GPU, evaluation is COCO's, and a step does not
depend on how many this process ran before.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.engine import AMPTrainer, DefaultTrainer, SimpleTrainer, create_ddp_model, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator
from detectron2.modeling.meta_arch import fcos, retinanet
from detectron2.solver import build_optimizer, get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from fvcore.nn import sigmoid_focal_loss
from torch import nn

from .checkpoint import SafeCheckpointer, weights_path
from .evaluate import coco_evaluator, evaluate
from .rank_state import RankState


class Trainer(DefaultTrainer):
    """Train the detector of a config.

    Subclasses train something around the detector: they override `wrap_detector` and
    `build_train_loader`; what is saved, evaluated and exported stays the plain detector.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # Not DefaultTrainer's own: it ties the checkpoint to the trained module, and data
        # parallelism to GPUs.
        TrainerBase.__init__(self)
        _use_eager_focal_loss()
        cfg = DefaultTrainer.auto_scale_workers(cfg, comm.get_world_size())
        self.cfg = cfg
        self.detector = self.build_model(cfg)
        model = self.wrap_detector(self.detector)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        self._trainer = self.build_loop(model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.rank_state = RankState(self.detector, cfg.SOLVER.CHECKPOINT_PERIOD)
        self.checkpointer = SafeCheckpointer(
            self.detector,
            cfg.OUTPUT_DIR,
            trainer=weakref.proxy(self),
            rank_state=self.rank_state,
            **self.extra_checkpointables(),
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.register_hooks([self.rank_state, *self.build_hooks()])

    def wrap_detector(self, detector: nn.Module) -> nn.Module:
        """The module to train; its forward takes a batch and gives the losses by name."""
        return detector

    def extra_checkpointables(self) -> dict[str, Any]:
        """What a checkpoint carries beside the detector and the trainer's own state."""
        return {}

    def build_loop(self, model: nn.Module, loader: Iterable[Any], optimizer: Any) -> SimpleTrainer:
        """detectron2's loop for one step, with or without mixed precision."""
        on_gpu = self.cfg.MODEL.DEVICE.startswith("cuda")
        ddp = create_ddp_model(
            model, broadcast_buffers=False, **({} if on_gpu else {"device_ids": None})
        )
        loop = AMPTrainer if self.cfg.SOLVER.AMP.ENABLED else SimpleTrainer
        return loop(ddp, loader, optimizer)

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """detectron2's SGD, or AdamW with the same settings (`SOLVER.OPTIMIZER`)."""
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return build_optimizer(cfg, model)
        if cfg.SOLVER.OPTIMIZER != "ADAMW":
            raise ValueError(f"SOLVER.OPTIMIZER: expected SGD or ADAMW: {cfg.SOLVER.OPTIMIZER!r}")
        parameters = get_default_optimizer_params(
            model,
            base_lr=cfg.SOLVER.BASE_LR,
            weight_decay=cfg.SOLVER.WEIGHT_DECAY,
            weight_decay_norm=cfg.SOLVER.WEIGHT_DECAY_NORM,
            bias_lr_factor=cfg.SOLVER.BIAS_LR_FACTOR,
            weight_decay_bias=cfg.SOLVER.WEIGHT_DECAY_BIAS,
        )
        optimizer = torch.optim.AdamW(
            parameters, lr=cfg.SOLVER.BASE_LR, weight_decay=cfg.SOLVER.WEIGHT_DECAY, fused=True
        )
        return maybe_add_gradient_clipping(cfg, optimizer)

    def resume_or_load(self, resume: bool = True) -> None:
        """As `DefaultTrainer`; a resumed run without a checkpoint says so and starts anew."""
        if not (resume and self.checkpointer.has_checkpoint()) and self.cfg.MODEL.WEIGHTS:
            weights_path(self.cfg.MODEL.WEIGHTS)
        super().resume_or_load(resume=resume)

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        """COCO's average precision."""
        return coco_evaluator(cfg, dataset_name)

    def build_hooks(self) -> list[Any]:
        """detectron2's hooks, except that evaluation looks at the plain detector."""
        stock = super().build_hooks()
        period = self.cfg.TEST.EVAL_PERIOD
        return [
            hooks.EvalHook(period, lambda: evaluate(self.cfg, self.detector))
            if isinstance(hook, hooks.EvalHook)
            else hook
            for hook in stock
            if hook is not None
        ]


def _use_eager_focal_loss() -> None:
    """Let detectron2's dense detectors compute the focal loss without TorchScript.

    The JIT rounds otherwise once it has optimised what it saw in the first steps, so that a resumed
    run would depart from an uninterrupted one.
    """
    for module in (retinanet, fcos):
        module.sigmoid_focal_loss_jit = sigmoid_focal_loss
