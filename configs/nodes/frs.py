"""Node FRS."""

from dataclasses import dataclass
from typing import ClassVar

from .base import FieldChecks


@dataclass(frozen=True, kw_only=True)
class FrsConfig:
    """Node FRS: distillation by feature richness; defaults are the authors' for RetinaNet.

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "FRS"

    # Weight of the feature loss; 0.01 for FCOS.
    feature_weight: float = 0.005
    # Weight of the classification loss; 0.05 for FCOS.
    cls_weight: float = 0.02
    # Iterations over which both weights rise linearly from zero, on top of any other warm-up.
    ramp_iters: int = 500

    def __post_init__(self) -> None:
        checks = FieldChecks(self)
        checks.number("feature_weight", at_most=1e9)
        checks.number("cls_weight", at_most=1e9)
        checks.integer("ramp_iters", at_least=0)
