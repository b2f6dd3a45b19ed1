"""Node BOXES."""

from dataclasses import dataclass
from typing import ClassVar

from .base import FieldChecks


@dataclass(frozen=True, kw_only=True)
class BoxesConfig:
    """Node BOXES: overlap of the decoded boxes of every anchor.

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "BOXES"

    # Weight of the loss.
    weight: float = 1.0

    def __post_init__(self) -> None:
        checks = FieldChecks(self)
        checks.weight("weight")
