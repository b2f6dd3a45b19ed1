"""Node FGD."""

from dataclasses import dataclass
from typing import ClassVar

from .base import FieldChecks


@dataclass(frozen=True, kw_only=True)
class FgdConfig:
    """Node FGD: focal and global distillation (Yang et al., CVPR 2022).

    Defaults are those of the authors' code for RetinaNet on COCO; for FCOS it has
    the weights 1.6e-3, 8e-4, 8e-4, 8e-6 and the temperature 0.8, for Faster R-CNN the weights 5e-5,
    2.5e-5, 5e-5 and 5e-7.

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "FGD"

    # Weight of the features inside of objects.
    foreground_weight: float = 1e-3
    # Weight of the features outside of them.
    background_weight: float = 5e-4
    # Weight of the difference of the attentions.
    attention_weight: float = 5e-4
    # Weight of the difference of the maps after their context blocks.
    relation_weight: float = 5e-6
    # Divides the magnitudes before the softmax of the attentions.
    temperature: float = 0.5
    # Names of the student's levels that are compared; empty: those that boxes are pooled from.
    levels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = FieldChecks(self)
        for term in ("foreground", "background", "attention", "relation"):
            checks.weight(f"{term}_weight")
        checks.number("temperature", above=0.0, at_most=1e6)
        checks.names("levels")
