"""Node PKD."""

from dataclasses import dataclass
from typing import ClassVar

from .base import FieldChecks


@dataclass(frozen=True, kw_only=True)
class PkdConfig:
    """Node PKD: correlation of features, channel by channel (Cao et al., NeurIPS 2022).

    Defaults are those of the authors' code for RetinaNet on COCO; for Faster R-CNN it
    has the weight 6.

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "PKD"

    # Weight of the loss.
    weight: float = 10.0
    # Names of the student's levels that are compared; empty: those that boxes are pooled from, up
    # to a stride of 64 px.
    levels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = FieldChecks(self)
        checks.weight("weight")
        checks.names("levels")
