"""Node CWD."""

from dataclasses import dataclass
from typing import ClassVar

from .base import FieldChecks


@dataclass(frozen=True, kw_only=True)
class CwdConfig:
    """Node CWD: channels as distributions over positions; the authors' defaults for RetinaNet.

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "CWD"

    # Weight of the loss of every level.
    weight: float = 10.0
    # Divides the features before the softmax; the loss is multiplied by its square.
    temperature: float = 1.0

    def __post_init__(self) -> None:
        checks = FieldChecks(self)
        checks.number("weight", at_most=1e9)
        checks.number("temperature", above=0.0, at_most=1e9)
