"""Training of a plain detector with detectron2's own loop, hooks, loader and checkpoints.

`Trainer` is `DefaultTrainer` with some differences: checkpoints are read safely and carry the
per-rank state, data parallelism also works without a GPU, evaluation is COCO's, and a step does not
depend on how many this process ran before.
"""

from __future__ import annotations

import logging
import math
import os
import weakref
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_train_loader
from detectron2.engine import DefaultTrainer, create_ddp_model, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.modeling.meta_arch import fcos, retinanet
from detectron2.solver import build_optimizer, get_default_optimizer_params
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils import comm
from detectron2.utils.events import EventWriter
from torch import nn

from .averaging import MovingAverage
from .building import naming_the_config
from .checkpoint import SafeCheckpointer, export_model, weights_path
from .evaluate import evaluate
from .focal_loss import focal_loss
from .hooks import KeepBest, MetricsWindow, StepPrinter, UpdateAverage, WaitingShare
from .images import ImageMapper, training_images
from .loop import AMP_DTYPES, Loop
from .patience import Patience, TrainingEnded
from .rank_state import RankState
from .scaling import fitted_to_ranks
from .setup import Setup
from .stopping import Interrupted, StopSignals
from .workers import watch_stock_loader

logger = logging.getLogger(__name__)

AVERAGED_NAME = "model_ema.pth"


class Trainer(DefaultTrainer):
    """Train the detector of a config.

    Subclasses train something around the detector: they override `wrap_detector` and
    `build_train_loader`; what is saved, evaluated and exported stays the plain detector.
    """

    iter: int

    def __init__(self, cfg: CfgNode) -> None:
        # Not DefaultTrainer's own: it ties the checkpoint to the trained module, and data
        # parallelism to GPUs.
        TrainerBase.__init__(self)
        _use_eager_focal_loss()
        self.cfg = cfg = fitted_to_ranks(cfg)
        if cfg.MODEL.DEVICE.startswith("cuda"):
            _use_one_host_thread()
        self._signals = StopSignals(cfg.SOLVER.PREEMPTION_SIGNAL)
        self.detector = self.build_model(cfg)
        decay = cfg.SOLVER.EMA_DECAY
        self.average = MovingAverage(self.detector, decay) if decay else None
        model = self.wrap_detector(self.detector)
        optimizer = self.build_optimizer(cfg, model)
        loader = self.build_train_loader(cfg)
        self._trainer = self._build_loop(model, loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.rank_state = RankState(self.detector, cfg, global_counts=self.counts_globally)
        self.checkpointer = SafeCheckpointer(
            self.detector,
            cfg.OUTPUT_DIR,
            # First, since they say more of a checkpoint that does not fit than the optimizer does.
            **self.extra_checkpointables(),
            trainer=weakref.proxy(self),
            rank_state=self.rank_state,
        )
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        self.patience = self._patience()
        self._evaluated: tuple[int, dict[str, dict[str, float]]] = (0, {})
        self.register_hooks([self.rank_state, MetricsWindow(), *self.build_hooks()])

    @cached_property
    def setup(self) -> Setup:
        """What follows from the config of this many ranks."""
        return Setup(self.cfg)

    def wrap_detector(self, detector: nn.Module) -> nn.Module:
        """The module to train; its forward takes a batch and gives the losses by name."""
        return detector

    def build_train_loader(self, cfg: CfgNode) -> Iterable[Any]:
        """detectron2's, over the images that `DATASET` asks for."""
        loader = build_detection_train_loader(
            cfg, dataset=training_images(self.setup), mapper=ImageMapper(cfg, is_train=True)
        )
        return watch_stock_loader(loader, cfg, is_train=True)

    def extra_checkpointables(self) -> dict[str, Any]:
        """What a checkpoint carries beside the detector and the trainer's own state."""
        return {"ema": self.average} if self.average else {}

    @property
    def trained(self) -> nn.Module:
        """The detector that is evaluated and kept: with averaged weights, if they are asked for."""
        return self.average.module if self.average else self.detector

    @property
    def counts_globally(self) -> bool:
        """Whether losses are divided by counts over all ranks' images."""
        return False

    def _build_loop(self, model: nn.Module, loader: Iterable[Any], optimizer: Any) -> Loop:
        on_gpu = self.cfg.MODEL.DEVICE.startswith("cuda")
        ddp = create_ddp_model(
            model, broadcast_buffers=False, **({} if on_gpu else {"device_ids": None})
        )
        this, amp = weakref.proxy(self), self.cfg.SOLVER.AMP
        return Loop(
            ddp,
            loader,
            optimizer,
            device=torch.device(self.cfg.MODEL.DEVICE),
            accumulate=self.cfg.SOLVER.ACCUMULATE,
            mixed_precision=AMP_DTYPES[amp.DTYPE] if amp.ENABLED else None,
            signals=self._signals,
            on_stop=lambda: this._save_step_before(),
        )

    def run_step(self) -> None:
        """One step; a run that fails in its last one is not evaluated as if it were finished."""
        try:
            super().run_step()
        except (Exception, Interrupted):
            self.iter = min(self.iter, self.max_iter - 2)
            raise

    def train(self) -> None:
        """As `DefaultTrainer`; a signal ends it after a whole step, which is saved.

        Raises:
            Interrupted: there was one.
        """
        with self._signals, suppress(TrainingEnded):
            super().train()

    def _save_step_before(self) -> str:
        """Write the checkpoint of the step before this one, so that nothing trained is lost."""
        self.iter -= 1
        return self._save_step()

    def _save_step(self) -> str:
        """Write the checkpoint of this step, on all ranks; say so."""
        saved = self.iter
        if saved >= self.start_iter:
            self.rank_state.gather()
            if comm.is_main_process() and not self.rank_state.is_due(saved):
                self.checkpointer.save(f"model_{saved:07d}", iteration=saved)
            self._trainer.wait_for_ranks()
        # The run did not finish: detectron2 would evaluate it otherwise.
        self.iter = min(saved, self.max_iter - 2)
        if saved < self.start_iter:
            return "no step was taken"
        return f"saved after iteration {saved}, go on with --resume"

    def after_step(self) -> None:
        """As `DefaultTrainer`; a signal in an evaluation ends it, and the run with it.

        Raises:
            TrainingEnded: there was enough of `TEST.PATIENCE`; the run is as at its last step.
        """
        try:
            super().after_step()
        except Interrupted as error:
            raise Interrupted(error.number, self._save_step()) from None
        self._end_if_stale()

    def _end_if_stale(self) -> None:
        """Make this step the last one, on all ranks, if there is no patience left."""
        if not (self.patience and self.patience.is_over):
            return
        logger.info(
            "ended early after iteration %d: %s; --resume goes on with a larger one, or 0",
            self.iter, self.patience.reason,
        )  # fmt: skip
        self.rank_state.gather()
        if comm.is_main_process():
            self.checkpointer.save("model_final", iteration=self.iter)
        self._trainer.wait_for_ranks()
        self.iter += 1
        self.max_iter = self.iter
        raise TrainingEnded

    def _resume_evaluation(self) -> None:
        """Make up for the evaluation that the run may have been stopped in; see if it had ended."""
        if not (self.patience and 0 < self.start_iter < self.max_iter):
            return
        # As if the last step of the earlier run were just done.
        self.iter = self.storage.iter = self.start_iter - 1
        if self.patience.lacks(self.start_iter):
            for hook in self._hooks:
                if isinstance(hook, hooks.EvalHook | KeepBest | Patience):
                    hook.after_step()
        self._end_if_stale()
        self.iter = self.storage.iter = self.start_iter

    @property
    def results(self) -> dict[str, dict[str, float]]:
        """What the last evaluation found, see `evaluate`; empty where there was none."""
        return self._evaluated[1]

    def _evaluate(self) -> dict[str, dict[str, float]]:
        # A run that ends early was evaluated after the very step that is its last.
        steps = min(self.iter + 1, self.max_iter)
        if self._evaluated[0] != steps:
            # Minutes; but of several ranks, none may leave the others alone in it.
            alone = comm.get_world_size() == 1
            with self._signals.immediate() if alone else nullcontext():
                self._evaluated = (steps, evaluate(self.cfg, self.trained))
        return self._evaluated[1]

    @classmethod
    def build_model(cls, cfg: CfgNode) -> nn.Module:
        """detectron2's, except that what cannot be built is told with its key."""
        with naming_the_config(cfg):
            model: nn.Module = super().build_model(cfg)
            return model

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: nn.Module) -> torch.optim.Optimizer:
        """detectron2's SGD, or AdamW with the same settings (`SOLVER.OPTIMIZER`)."""
        if cfg.SOLVER.OPTIMIZER == "SGD":
            return build_optimizer(cfg, model)
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
        """As `DefaultTrainer`; a resumed run without a checkpoint says so and starts anew.

        Raises:
            ValueError: the run to resume has trained beyond this config, or with other settings.
        """
        if not (resume and self.checkpointer.has_checkpoint()) and self.cfg.MODEL.WEIGHTS:
            weights_path(self.cfg.MODEL.WEIGHTS)
        super().resume_or_load(resume=resume)
        if self.start_iter > self.max_iter:
            raise ValueError(
                f"SOLVER.MAX_ITER is {self.max_iter}, but the run to resume has trained"
                f" {self.start_iter} iterations: give {self.start_iter} or more"
            )

    def before_train(self) -> None:
        """Start the loader first: that draws from the generators that a resumed run restores."""
        self._trainer.start_loader()
        super().before_train()
        self._signals.defer()
        self._resume_evaluation()

    def build_hooks(self) -> list[Any]:
        """detectron2's hooks, except that evaluation looks at the plain detector, and ours."""
        period = self.cfg.TEST.EVAL_PERIOD
        found: list[Any] = [UpdateAverage(self.average, self.detector)] if self.average else []
        for hook in super().build_hooks():
            if isinstance(hook, hooks.EvalHook):
                found.append(hooks.EvalHook(period, self._evaluate))
                found.extend(self._best_hook())
                found.extend([self.patience] if self.patience else [])
            elif hook is not None:
                found.append(hook)
            if isinstance(hook, hooks.IterationTimer):
                found.append(WaitingShare())
        return found

    def _best_hook(self) -> list[KeepBest]:
        """Where evaluation is periodic; only the main rank has its results."""
        period, names = self.cfg.TEST.EVAL_PERIOD, self.cfg.DATASETS.TEST
        if not (period and names and comm.is_main_process()):
            return []
        return [KeepBest(period, self.trained, Path(self.cfg.OUTPUT_DIR), f"{names[0]}/AP")]

    def _patience(self) -> Patience | None:
        """Where evaluation is periodic; without TEST.PATIENCE it counts, and ends nothing."""
        test, names = self.cfg.TEST, self.cfg.DATASETS.TEST
        if not (test.EVAL_PERIOD and names):
            return None
        return Patience(test.EVAL_PERIOD, test.PATIENCE or math.inf, f"{names[0]}/AP")

    def build_writers(self) -> list[EventWriter]:
        """detectron2's, and a console line of ours."""
        return [*super().build_writers(), StepPrinter(self.max_iter)]

    def after_train(self) -> None:
        """As `DefaultTrainer`, and write the averaged weights as a plain checkpoint."""
        if self.iter < self.max_iter:
            super().after_train()
            return
        self._signals.raise_pending("training is done and saved, --resume evaluates it")
        with self._signals.immediate():
            super().after_train()
        if self.average and comm.is_main_process():
            export_model(self.average.module, Path(self.cfg.OUTPUT_DIR) / AVERAGED_NAME)


def _use_one_host_thread() -> None:
    """Let the host compute alone what it computes beside a GPU, all of it small.

    PyTorch shares some operations out among as many threads as there are cores even where they
    have a dozen numbers, and waits for the last thread, while the data workers have the cores: a
    step of 16 images lost a sixth of its time so. OMP_NUM_THREADS decides where it is set.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


def _use_eager_focal_loss() -> None:
    """Let detectron2's dense detectors compute the focal loss without TorchScript, and in parts.

    The JIT rounds otherwise once it has optimised what it saw in the first steps, so that a resumed
    run would depart from an uninterrupted one.
    """
    for module in (retinanet, fcos):
        module.sigmoid_focal_loss_jit = focal_loss
