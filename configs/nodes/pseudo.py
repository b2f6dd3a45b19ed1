"""Node PSEUDO."""

from dataclasses import dataclass
from typing import ClassVar

from .base import FieldChecks


@dataclass(frozen=True, kw_only=True)
class PseudoConfig:
    """Node PSEUDO: what the teacher is sure of, and nobody annotated, as ground truth.

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "PSEUDO"

    # Lowest score of a detection that is taken.
    min_score: float = 0.5
    # IoU with an annotated object from which on it is not.
    max_iou: float = 0.5

    def __post_init__(self) -> None:
        checks = FieldChecks(self)
        checks.number("min_score", at_most=1.0)
        checks.number("max_iou", above=0.0, at_most=1.0)
