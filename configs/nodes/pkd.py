"""Node PKD."""

from dataclasses import dataclass
from typing import ClassVar

from configs.rules import Several, Text

from .base import FieldChecks


@dataclass(frozen=True, kw_only=True)
class PkdConfig:
    """Node PKD: the correlation of features; defaults are the authors' for RetinaNet.

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "PKD"

    # Weight of the loss; 6 for Faster R-CNN.
    weight: float = 10.0
    # Names of the pyramid levels that take part; empty: all. The authors leave out p7, and take p2
    # to p5 for Faster R-CNN.
    levels: tuple[str, ...] = ("p3", "p4", "p5", "p6")

    def __post_init__(self) -> None:
        checks = FieldChecks(self)
        checks.number("weight", at_most=1e9)
        checks.check("levels", Several(item=Text(needed=True), at_least=0))
        object.__setattr__(self, "levels", tuple(self.levels))
