"""Node DISTILL."""

from dataclasses import dataclass
from typing import ClassVar

from .base import FieldChecks


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """Node DISTILL: which methods distil, and what holds for all of them.

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "DISTILL"
    COUNTS: ClassVar[tuple[str, ...]] = ("rank", "global")

    # Names of the methods whose losses are added up; each has a node of its own, which is not read
    # where the method is not named.
    methods: tuple[str, ...] = ("gid",)
    # What losses are divided by, the detector's own included: counts of the rank's images, as in
    # stock detectron2, or of all ranks' images, so that any number of ranks trains alike; but for
    # `pkd`, which takes mean and deviation of the rank's own images, and a Faster R-CNN, which
    # draws its samples of anchors and proposals per rank.
    counts: str = "rank"
    # Iterations over which the weights of all methods rise linearly from zero; 0: none.
    warmup_iters: int = 0
    # Share of a batch that is of DATASETS.UNLABELED, where that names sets: images without labels,
    # which the methods alone learn from. Each rank, and each part of SOLVER.ACCUMULATE, keeps a
    # labelled image.
    unlabeled_share: float = 0.5

    def __post_init__(self) -> None:
        checks = FieldChecks(self)
        checks.names("methods", at_least=1)
        if len(set(self.methods)) != len(self.methods):
            raise checks.refusal("methods", "each name once")
        checks.choice("counts", self.COUNTS)
        checks.integer("warmup_iters", at_least=0)
        checks.number("unlabeled_share", above=0.0, at_most=1.0)
