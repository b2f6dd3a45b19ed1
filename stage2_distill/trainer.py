"""The distill job: detectron2's loop around a `Distiller`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter
from torch import nn

from detectors import Setup, distilled_images, export_model, weights_path
from detectors.checkpoint import METHODS
from detectors.hooks import PRINTED_ITERS, StepPrinter
from detectors.plain_config import plain_config
from detectors.scaling import fitted_to_ranks
from detectors.trainer import Trainer
from storage.whole import write_whole

from .cache_check import held_images
from .data import build_data
from .distiller import build_distiller
from .inherit import inherit
from .methods import chosen_methods, nodes_of_methods
from .prefetch import DeviceLoader
from .shares import Shares
from .teacher import Teacher, open_teacher

EXPORTED_NAME = "student_final.pth"


class DistillPrinter(StepPrinter):
    """Prints what the methods say of a step too, such as the GIs of an image, as means."""

    def __init__(self, max_iter: int, methods: Sequence[str]) -> None:
        """Args: as `StepPrinter`, and the names of the methods."""
        super().__init__(max_iter)
        self._methods = methods

    def parts(self, storage: EventStorage) -> list[str]:
        """See `StepPrinter`."""
        found = super().parts(storage)
        for method in self._methods:
            figures = [
                f"{name.removeprefix(f'{method}/')}: {history.avg(PRINTED_ITERS):.3g}"
                for name, history in storage.histories().items()
                if name.startswith(f"{method}/")
            ]
            found += [f"{method}: {'  '.join(figures)}"] if figures else []
        return found


def images_and_teacher(setup: Setup) -> tuple[list[dict[str, Any]], Teacher | None]:
    """Find what a training needs beside its own models, or refuse the config.

    Returns:
        The images in use, as detectron2's dataset dicts, and the teacher, where there is one.

    Raises:
        FileNotFoundError, ValueError: something is not there, or does not fit.
    """
    images = distilled_images(setup)
    teacher = open_teacher(setup, images)
    config = setup.settings.teacher
    if config.source == "live" or config.inherit != "none":
        weights_path(setup.trained_teacher_cfg.MODEL.WEIGHTS)
    return held_images(images, teacher.reader if teacher else None), teacher


class DistillTrainer(Trainer):
    """Train a student under the teacher that `TEACHER.SOURCE` names.

    With `TEACHER.SOURCE: none` it is the baseline: the same loop, images, views and schedule on
    ground truth alone.
    """

    def __init__(self, cfg: CfgNode) -> None:
        # All of this is checked before any model is built; the data is cut for the ranks first.
        self.cfg = fitted_to_ranks(cfg)
        images, self._teacher = images_and_teacher(self.setup)
        reader = self._teacher.reader if self._teacher else None
        self._data = build_data(self.setup, images, reader)
        super().__init__(self.cfg)

    def build_train_loader(self, cfg: CfgNode) -> DeviceLoader:
        """The loader of views and codes."""
        return self._data.loader

    @property
    def counts_globally(self) -> bool:
        """See `Trainer`."""
        return self.setup.settings.distill.counts == "global"

    def wrap_detector(self, detector: nn.Module) -> nn.Module:
        """Put the detector into the distilling step."""
        rising = [method.full_weight_at(config) for method, config in chosen_methods(self.setup)]
        shares = Shares(max(0, self.setup.settings.distill.warmup_iters - 1, *rising))
        self.distiller = build_distiller(self.setup, detector, self._teacher, shares)
        return self.distiller

    def extra_checkpointables(self) -> dict[str, Any]:
        """The methods' layers are a part of the checkpoint, not of the student in it."""
        return {**super().extra_checkpointables(), METHODS: self.distiller.trained_layers}

    def resume_or_load(self, resume: bool = True) -> None:
        """As the plain trainer, and the sampler goes on where the checkpoint stopped."""
        anew = not (resume and self.checkpointer.has_checkpoint())
        super().resume_or_load(resume=resume)
        if anew:
            inherit(self.detector, self.setup)
        self._data.sampler.first_iter = self.start_iter

    def build_writers(self) -> list[EventWriter]:
        """As the plain trainer, and the methods' figures on the console."""
        printer = DistillPrinter(self.max_iter, self.setup.settings.distill.methods)
        return [printer if isinstance(w, StepPrinter) else w for w in super().build_writers()]

    def after_train(self) -> None:
        """Export the student: a plain checkpoint, and the config by which detectron2 builds it."""
        super().after_train()
        if comm.is_main_process() and self.iter >= self.max_iter:
            path = Path(self.cfg.OUTPUT_DIR) / EXPORTED_NAME
            export_model(self.trained, path)
            lazy = self.setup.family.lazy_config(self.cfg)
            config = lazy or plain_config(self.cfg, path, of_methods=nodes_of_methods())
            write_whole(path.with_suffix(".py" if lazy else ".yaml"), config)
