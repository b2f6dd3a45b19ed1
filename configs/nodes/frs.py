"""Node FRS."""

from dataclasses import dataclass
from typing import ClassVar

from .base import FieldChecks


@dataclass(frozen=True, kw_only=True)
class FrsConfig:
    """Node FRS: features and class scores where the teacher's are rich (Du et al., NeurIPS 2021).

    Defaults are those of the authors' code for RetinaNet on COCO; for FCOS it has
    the weights 0.01 and 0.05.

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "FRS"

    # Weight of the feature loss.
    feature_weight: float = 0.005
    # Weight of the loss of the class scores.
    cls_weight: float = 0.02
    # Iterations over which both weights rise from zero, on top of DISTILL.WARMUP_ITERS; 0: none.
    ramp_iters: int = 500
    # Names of the student's levels that are compared; empty: those that boxes are pooled from.
    levels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = FieldChecks(self)
        checks.weight("feature_weight")
        checks.weight("cls_weight")
        checks.integer("ramp_iters", at_least=0)
        checks.names("levels")
