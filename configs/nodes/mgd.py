"""Node MGD."""

from dataclasses import dataclass
from typing import ClassVar

from .base import FieldChecks


@dataclass(frozen=True, kw_only=True)
class MgdConfig:
    """Node MGD: masked generative distillation; defaults are the authors' for RetinaNet.

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "MGD"

    # Weight of the loss; 5e-7 for Faster R-CNN.
    weight: float = 2e-5
    # Share of the student's positions that is removed at random; 0.45 for Faster R-CNN.
    share: float = 0.65

    def __post_init__(self) -> None:
        checks = FieldChecks(self)
        checks.number("weight", at_most=1e9)
        checks.number("share", at_most=1.0)
