"""The training step: a plain detector, its own losses, and those of the methods that distil."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from detectron2.structures import Instances
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn

from detectors import DenseOutputs, Setup
from detectors.families import TrainingStep

from .methods import Method, Pair, Step, TrainedLayers, build_methods
from .methods.answers import checked_ground_truth, checked_metrics
from .shares import Shares
from .teacher import Teacher, TeacherSource


class Distiller(nn.Module):
    """Wraps a student; its training forward gives every loss by name.

    The student stays a plain detectron2 model and knows nothing of this; what the methods train
    beside it is left behind at export.
    """

    def __init__(
        self,
        detector: nn.Module,
        setup: Setup,
        *,
        source: TeacherSource | None = None,
        pair: Pair | None = None,
        methods: Sequence[Method] = (),
        shares: Shares | None = None,
    ) -> None:
        """Args:

        detector: the student.
        setup: of its config.
        source: the teacher; None trains on ground truth alone.
        pair: teacher and student, where there is a teacher.
        methods: whose losses are added up.
        shares: looks at the terms of the first steps.
        """
        super().__init__()
        self.detector = detector
        self._methods = nn.ModuleList(methods)
        # What the optimizer is made of.
        self._trained = {name for name, _ in self._methods.named_parameters()}
        self._setup = setup
        self._source = source
        self._pair = pair
        self._shares = shares

    @property
    def methods(self) -> list[Method]:
        """Those whose losses are added up."""
        return [one for one in self._methods if isinstance(one, Method)]

    @property
    def trained_layers(self) -> TrainedLayers:
        """The methods' part of a checkpoint."""
        return TrainedLayers({one.name: one for one in self.methods})

    def forward(self, batch: list[dict[str, Any]]) -> Any:
        """Losses by name in training; detections, as the detector gives them, otherwise."""
        if not self.training:
            return self.detector(batch)
        outputs = self._setup.family.run(self.detector, batch)
        if self._source is None:
            return self._training_step(outputs, _targets(batch, outputs)).losses()
        step = self.step(batch, self._source, outputs, iteration=get_event_storage().iter)
        return self._all_losses(step, outputs)

    def step(
        self,
        batch: list[dict[str, Any]],
        source: TeacherSource,
        outputs: DenseOutputs,
        *,
        iteration: int = 0,
    ) -> Step:
        """What the methods meet, of the loader's items and any teacher.

        Args:
            batch: N items.
            source: the teacher.
            outputs: the student's, of all its levels.
            iteration: of the training.
        """
        assert self._pair is not None
        # On the way before anything that a GPU is waited for.
        targets = _targets(batch, outputs)
        unlabelled = [item.get("unlabelled", False) for item in batch]
        assert unlabelled == sorted(unlabelled), "images without labels come last"
        device = outputs.logits.device
        shared = outputs.on_levels(self._pair.student_levels)
        # The student's mixed precision is not the teacher's; and stacking codes, which may be
        # float16, is refused or rounds under it.
        with torch.autocast(device.type, enabled=False):
            teacher = source.outputs(batch, shared.level_sizes, device)
        if self._pair.classes is not None:
            teacher = teacher.of_classes(self._pair.classes)
        return Step(
            pair=self._pair,
            detector=self.detector,
            outputs=shared,
            teacher=teacher,
            targets=targets,
            images=[(item["image_id"], item["view"]) for item in batch],
            iteration=iteration,
            global_counts=self._setup.settings.distill.counts == "global",
            unlabelled=sum(unlabelled),
        )

    def positive(self, step: Step, outputs: DenseOutputs) -> Tensor:
        """(N, R) bool, the places that the detector assigns to an object of a step."""
        return self._positive(self._own_step(step, outputs), outputs)

    def _own_step(self, step: Step, outputs: DenseOutputs) -> TrainingStep:
        """What the detector's training says of the images with labels."""
        if not step.unlabelled:
            return self._training_step(outputs, step.targets)
        labelled = len(step.targets) - step.unlabelled
        return self._training_step(outputs.first(labelled), step.targets[:labelled])

    def _training_step(self, outputs: DenseOutputs, targets: Sequence[Instances]) -> TrainingStep:
        together = self._setup.settings.distill.counts == "global"
        return self._setup.family.training_step(
            self.detector, outputs, list(targets), global_counts=together
        )

    def _positive(self, own: TrainingStep, outputs: DenseOutputs) -> Tensor:
        """Those of the shared levels; an image without labels has none."""
        assert self._pair is not None
        found = outputs.places_on(self._pair.student_levels, own.positive)
        lacking = len(outputs.logits) - len(found)
        return torch.cat([found, found.new_zeros(lacking, found.shape[1])]) if lacking else found

    def _all_losses(self, step: Step, outputs: DenseOutputs) -> dict[str, Tensor]:
        """Own losses, and those of the methods.

        The order is that of what a GPU is waited for: methods begin before the detector's
        assignment, which waits; and the host looks at what they chose while the detector's losses
        are computed.

        Raises:
            FloatingPointError: outputs are not finite.
            ValueError: a method answers with something else than `Method` says, or a term has the
                name of one of the detector's own losses.
        """
        methods = self.methods
        for method in methods:
            targets = checked_ground_truth(method, method.ground_truth(step), len(step.targets))
            step = replace(step, targets=targets)
        if any(method.labels_images for method in methods):
            step = replace(step, unlabelled=0)
        begun = [method.begin(step) for method in methods]
        own = self._own_step(step, outputs)
        positive = self._positive(own, outputs)
        chosen = [
            method.assigned(step, one, positive) for method, one in zip(methods, begun, strict=True)
        ]
        of_detector = own.losses()
        storage = get_event_storage()
        warmup = warmup_factor(step.iteration, self._setup.settings.distill.warmup_iters)
        failure: FloatingPointError | None = None
        losses: dict[str, Tensor] = {}
        for method, one in zip(methods, chosen, strict=True):
            try:
                found = method.weighted(step, method(step, one), warmup)
            except FloatingPointError as error:
                # The methods behind it still exchange counts with those of other ranks.
                failure, found = failure or error, {}
            for name, value in checked_metrics(method, method.metrics()).items():
                storage.put_scalar(f"{method.name}/{name}", value)
            _require_new(of_detector, found, method)
            losses |= found
        if failure:
            raise failure
        self._require_no_new_layers()
        if self._shares is not None:
            self._shares.look(step.iteration, of_detector, losses, outputs.features, self._keys)
        return of_detector | losses

    def _require_no_new_layers(self) -> None:
        """Refuse those that a step made: nobody trains them, and no checkpoint could be loaded."""
        for name, _ in self._methods.named_parameters():
            if name not in self._trained:
                number, _, weight = name.partition(".")
                raise ValueError(
                    f"the method {self.methods[int(number)].name}: its weight {weight} was made in "
                    "a step, and would not be trained; make its layers in __init__, where `pair` "
                    "tells the channels of both"
                )

    @property
    def _keys(self) -> dict[str, str]:
        """Name of every loss of the methods to the config key that weighs it."""
        return {
            method.term_name(term): method.weight_key(term)
            for method in self.methods
            for term in method.weights
        }


def _targets(batch: list[dict[str, Any]], outputs: DenseOutputs) -> list[Instances]:
    return [item["instances"].to(outputs.logits.device) for item in batch]


def warmup_factor(iteration: int, warmup_iters: int) -> float:
    """Linear ramp of the distillation weights: from 1 / warmup_iters at iteration 0 up to 1."""
    return min(1.0, (iteration + 1) / max(1, warmup_iters))


def build_distiller(
    setup: Setup, detector: nn.Module, teacher: Teacher | None, shares: Shares | None = None
) -> Distiller:
    """Put a student into the step that its config asks for.

    Args:
        setup: the student's.
        detector: the student.
        teacher: whom it learns from, live or cached; None trains on ground truth alone.
        shares: looks at the terms of the first steps.

    Raises:
        ValueError: a method cannot distil this pair, such as GID.ADAPTATION none with pyramids of
            different channel counts.
    """
    if teacher is None:
        return Distiller(detector, setup)
    methods = build_methods(teacher.pair)
    return Distiller(
        detector,
        setup,
        source=teacher.source(student_format=setup.cfg.INPUT.FORMAT),
        pair=teacher.pair,
        methods=[method.to(setup.cfg.MODEL.DEVICE) for method in methods],
        shares=shares,
    )


def _require_new(losses: dict[str, Tensor], found: dict[str, Tensor], method: Method) -> None:
    taken = losses.keys() & found.keys()
    if taken:
        raise ValueError(
            f"the method {method.name} gives {min(taken)}, a loss that the detector has too; "
            "rename the method or the term"
        )
