"""What a method of distillation is: what it needs of a teacher, its losses, its trained layers.

Shape letters: N images, R places of an image (anchors or positions, all levels), C channels,
L levels, H_l and W_l the grid of a level.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from detectors import DenseOutputs, DetectorFamily, Setup
from detectors.classes import ClassMap
from detectors.ranks import mean_over_ranks
from detectors.stored import Stored
from stage2_distill.teacher_batch import TeacherBatch

from .answers import checked_terms
from .ground_truth import batched_boxes
from .pyramids import Total, of_this_rank

# The teacher's final boxes, which every record has beside its signals.
DETECTIONS = "detections"

# Score from which on a detection stands for an object of an image without labels.
_SURE = 0.5


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A teacher and a student, as they are known before any step.

    Attributes:
        setup: of the student.
        stored: what is used of the teacher's outputs.
        student_levels: numbers of the student's levels that the teacher has one of the same stride
            to, finest first.
        teacher_levels: numbers of those, among the levels that are stored.
        classes: the student's among the teacher's; None: they are the same, or of no matter.
    """

    setup: Setup
    stored: Stored
    student_levels: tuple[int, ...]
    teacher_levels: tuple[int, ...]
    classes: ClassMap | None = None

    @classmethod
    def of(cls, setup: Setup, stored: Stored) -> Pair:
        """Find the levels that the two have in common, by their strides."""
        theirs = list(stored.levels.values())
        ours = list(setup.family.levels(setup.cfg).values())
        shared = [stride for stride in ours if stride in theirs]
        return cls(
            setup=setup,
            stored=stored,
            student_levels=tuple(map(ours.index, shared)),
            teacher_levels=tuple(map(theirs.index, shared)),
            classes=setup.class_map,
        )

    @property
    def student_channels(self) -> int:
        """C of the student's pyramid."""
        return self.setup.family.channels(self.setup.cfg)

    @property
    def teacher_channels(self) -> int:
        """C of the teacher's pyramid."""
        return self.stored.family.channels(self.stored.cfg)

    @cached_property
    def levels(self) -> dict[str, int]:
        """Name of every shared level, as the student calls it, to its stride in pixels."""
        every = list(self.setup.family.levels(self.setup.cfg).items())
        return dict(every[number] for number in self.student_levels)

    @cached_property
    def pooled(self) -> list[int]:
        """Numbers, among the shared levels, of those that features of boxes are pooled from."""
        names = self.setup.family.pooled_levels(self.setup.cfg)
        return [number for number, name in enumerate(self.levels) if name in names]

    def chosen(self, config: Any, *, max_stride: float = float("inf")) -> list[int]:
        """Numbers, among the shared levels, of those that a method compares.

        Args:
            config: its node, whose `levels` names them; empty: the pooled ones, up to a stride.
            max_stride: pixels.

        Raises:
            ValueError: a name is none of a shared level, or there is no level at all.
        """
        names, strides = list(self.levels), list(self.levels.values())
        for name in config.levels:
            if name not in names:
                raise ValueError(
                    f"{config.node}.LEVELS: {name!r}; expected some of {', '.join(names)}, the "
                    "levels that teacher and student both have"
                )
        found = [names.index(name) for name in names if name in config.levels]
        found = found or [one for one in self.pooled if strides[one] <= max_stride]
        if not found:
            raise ValueError(
                f"{config.node}: teacher and student share none of the levels that it compares; "
                f"they share {', '.join(names) or 'none'}, and {config.node}.LEVELS chooses others"
            )
        return found


@dataclass(frozen=True, kw_only=True)
class Step:
    """One batch, as methods meet it; what several of them ask for is computed once.

    Attributes:
        pair: teacher and student.
        detector: the student.
        outputs: the student's, on the shared levels.
        teacher: its outputs, on the same levels and grid, of the student's classes.
        targets: ground truth of the N images; those without labels have no object.
        unlabelled: how many images have no labels, the last ones.
        images: image id and view of each.
        iteration: of the training, from 0.
        global_counts: whether losses are divided by counts over all ranks.
    """

    pair: Pair
    detector: nn.Module
    outputs: DenseOutputs
    teacher: TeacherBatch
    targets: Sequence[Instances]
    images: Sequence[tuple[int, int]]
    iteration: int
    global_counts: bool
    unlabelled: int = 0

    @property
    def family(self) -> DetectorFamily:
        """Of the student."""
        return self.pair.setup.family

    @property
    def total(self) -> Total:
        """What losses divide by, from a sum of this rank; see `Total`."""
        return mean_over_ranks if self.global_counts else of_this_rank

    @cached_property
    def objects(self) -> tuple[Tensor, Tensor]:
        """Ground truth as boxes (N, M, 4) and valid (N, M), see `batched_boxes`."""
        return batched_boxes(self.targets)

    @cached_property
    def objects_or_detections(self) -> tuple[Tensor, Tensor]:
        """As `objects`, and of images without labels what the teacher is sure of.

        For methods whose `needs_unlabelled` names `DETECTIONS`.
        """
        if not self.unlabelled:
            return self.objects
        boxes, valid = self.objects
        found, scores = self.teacher.detections[..., :4], self.teacher.detections[..., 4]
        is_sure = scores >= _SURE
        is_sure[: len(is_sure) - self.unlabelled] = False
        return torch.cat([boxes, found.to(boxes.dtype)], dim=1), torch.cat([valid, is_sure], dim=1)

    @cached_property
    def boxes(self) -> tuple[Tensor, Tensor]:
        """The boxes of all places (N, R, 4), not clipped, of student and teacher."""
        student, teacher = (
            self._decoded(deltas) for deltas in (self.outputs.deltas, self.teacher.deltas)
        )
        return student, teacher

    def _decoded(self, deltas: Tensor) -> Tensor:
        """Boxes of deltas (N, R, 4) at the student's places."""
        transform = self.family.box_transform(self.detector)
        places = self.outputs.anchors.expand(len(deltas), -1, -1).reshape(-1, 4)
        return transform.apply_deltas(deltas.float().flatten(0, 1), places).view_as(deltas)


class Method(nn.Module):
    """One way to distil. A subclass gives its losses; its parameters are trained with the student.

    Its life in a step: `begin`, the detector's assignment of ground truth, `assigned`, the
    detector's own losses, `forward`. The earlier something is launched, the less a GPU is waited
    for; most methods need `forward` alone.
    """

    # Of lower-case letters and digits: it stands in DISTILL.METHODS and in the names of the losses.
    name: ClassVar[str]
    # The dataclass of its node.
    Config: ClassVar[type[Any]]
    # Name of every term of the loss to the field of the node that weighs it. A method of one term
    # may call it "".
    weights: ClassVar[Mapping[str, str]]
    # Presets whose codes miss the limits of fidelity for this method, with what was measured.
    too_coarse: ClassVar[Mapping[str, str]] = {}
    # What it reads beside `needs` where images without labels are among the others.
    needs_unlabelled: ClassVar[tuple[str, ...]] = ()
    # Whether its `ground_truth` gives labels to images that have none, so that the detector's own
    # losses are of these too.
    labels_images: ClassVar[bool] = False

    def __init__(self, config: Any, pair: Pair) -> None:
        """Args: its node; teacher and student.

        Raises:
            ValueError: it cannot distil this pair.
        """
        super().__init__()
        self.config = config
        self.pair = pair

    @classmethod
    def needs(cls, config: Any) -> tuple[str, ...]:
        """Names of the teacher's signals that it reads, or `DETECTIONS`."""
        raise NotImplementedError

    @classmethod
    def check(cls, config: Any, setup: Setup) -> None:
        """Refuse what it cannot do, before a cache is opened or a model built.

        Raises:
            ValueError: names the key, and what to do.
        """

    @classmethod
    def without(cls, lacking: Sequence[str]) -> str:
        """What to do, in a word of advice, where a cache lacks some of `needs`."""
        return f"leave {cls.name} out of DISTILL.METHODS"

    @classmethod
    def full_weight_at(cls, config: Any) -> int:
        """The first iteration in which every term has its full weight, DISTILL.WARMUP_ITERS aside.

        Other than 0 for a method that lets a term of its own rise.
        """
        return 0

    def begin(self, step: Step) -> Any:
        """Launch what needs no labels; the result is handed on to `assigned`."""

    def ground_truth(self, step: Step) -> Sequence[Instances]:
        """What the detector is trained on and all methods see as ground truth."""
        return step.targets

    def assigned(self, step: Step, begun: Any, positive: Tensor) -> Any:
        """Launch what needs the labels of places; the result is handed on to `forward`.

        Args:
            step: of the batch.
            begun: what `begin` gave.
            positive: (N, R) bool, the places that the detector assigned to an object.
        """
        return begun

    def forward(self, step: Step, chosen: Any) -> dict[str, Tensor]:
        """The terms of the loss, unweighted scalars by the names of `weights`.

        Args:
            step: of the batch.
            chosen: what `assigned` gave.

        Raises:
            FloatingPointError: outputs are not finite; only after every exchange between ranks.
        """
        raise NotImplementedError

    def metrics(self) -> Mapping[str, float]:
        """Further figures of the last step, for the log."""
        return {}

    def drawn(self, step: Step, begun: Any, positive: Tensor) -> list[DrawnBoxes]:
        """What a picture of a step of one image shows of the method; nothing of most.

        Args:
            step: of one image.
            begun: what `begin` gave.
            positive: (1, R) bool, as `assigned` takes it.
        """
        return []

    def agreement(self, begun: Any, other: Any) -> tuple[int, int] | None:
        """How far the choices of `begin` under two teachers agree; None where nothing is chosen.

        Args:
            begun: under the one teacher.
            other: under another, of the same batch.

        Returns:
            How many there are under the first, and how many of them are found under the other.
        """
        return None

    def term_name(self, term: str) -> str:
        """The name of a term in the log."""
        return f"loss_{self.name}" + (f"_{term}" if term else "")

    def weight_key(self, term: str) -> str:
        """The config key that weighs a term."""
        return f"{self.Config.node}.{self.weights[term].upper()}"

    def weighted(
        self, step: Step, terms: Mapping[str, Tensor], warmup: float = 1.0
    ) -> dict[str, Tensor]:
        """The terms that `forward` gave for a step by their names in the log, weighted.

        Raises:
            ValueError: they are other than `weights` says.
        """
        found = checked_terms(self, terms, step.outputs.logits.device)
        return {
            self.term_name(term): getattr(self.config, self.weights[term]) * warmup * value
            for term, value in found.items()
        }


@dataclass(frozen=True, kw_only=True)
class DrawnBoxes:
    """Boxes of one kind in a method's panel.

    Attributes:
        title: of the panel, the same for all kinds.
        kind: what they are, for the legend; each has a colour of its own.
        boxes: (n, 4) XYXY_ABS, pixels of the view, on the host.
        labels: a text for each.
        style: of the lines, a word of matplotlib.
    """

    title: str
    kind: str
    boxes: Tensor
    labels: Sequence[str]
    style: str
