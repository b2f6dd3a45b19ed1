"""Node MIMIC."""

from dataclasses import dataclass
from typing import ClassVar

from .base import FieldChecks


@dataclass(frozen=True, kw_only=True)
class MimicConfig:
    """Node MIMIC: mean squared difference of adapted features (Romero et al., ICLR 2015).

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "MIMIC"

    # Weight of the loss.
    weight: float = 5.0
    # Names of the student's levels that are compared; empty: those that boxes are pooled from.
    levels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = FieldChecks(self)
        checks.weight("weight")
        checks.names("levels")
