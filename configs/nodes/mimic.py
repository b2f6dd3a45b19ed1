"""Node MIMIC."""

from dataclasses import dataclass
from typing import ClassVar

from .base import FieldChecks


@dataclass(frozen=True, kw_only=True)
class MimicConfig:
    """Node MIMIC: the mean squared difference of adapted features.

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "MIMIC"

    # Weight of the loss.
    weight: float = 5.0

    def __post_init__(self) -> None:
        FieldChecks(self).number("weight", at_most=1e9)
