"""Node PSEUDO."""

from dataclasses import dataclass
from typing import ClassVar

from .base import FieldChecks


@dataclass(frozen=True, kw_only=True)
class PseudoConfig:
    """Node PSEUDO: detections of the teacher that become ground truth.

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "PSEUDO"

    # Lowest score of a detection that is taken, 0 to 1.
    min_score: float = 0.5
    # IoU with a box of ground truth from which on a detection is left out, above 0, up to 1.
    max_iou: float = 0.5

    def __post_init__(self) -> None:
        checks = FieldChecks(self)
        checks.number("min_score", at_most=1.0)
        checks.number("max_iou", above=0.0, at_most=1.0)
