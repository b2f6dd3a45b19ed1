"""Node MGD."""

from dataclasses import dataclass
from typing import ClassVar

from .base import FieldChecks


@dataclass(frozen=True, kw_only=True)
class MgdConfig:
    """Node MGD: restoring the teacher's features from masked ones (Yang et al., ECCV 2022).

    Defaults are those of the authors' code for RetinaNet on COCO; for Faster R-CNN it
    has the weight 5e-7 and the share 0.45.

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "MGD"

    # Weight of the loss.
    weight: float = 2e-5
    # Of the positions, the share that is removed.
    masked: float = 0.65
    # Names of the student's levels that are compared; empty: those that boxes are pooled from.
    levels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = FieldChecks(self)
        checks.weight("weight")
        checks.number("masked", at_most=1.0)
        checks.names("levels")
