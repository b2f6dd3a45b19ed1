"""Node CWD."""

from dataclasses import dataclass
from typing import ClassVar

from .base import FieldChecks


@dataclass(frozen=True, kw_only=True)
class CwdConfig:
    """Node CWD: channels as distributions over positions (Shu et al., ICCV 2021).

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "CWD"

    # Weight of the loss of each level.
    weight: float = 10.0
    # Divides the features before the softmax.
    temperature: float = 1.0
    # Names of the student's levels that are compared; empty: those that boxes are pooled from.
    levels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = FieldChecks(self)
        checks.weight("weight")
        checks.number("temperature", above=0.0, at_most=1e6)
        checks.names("levels")
