"""Node FGD."""

from dataclasses import dataclass
from typing import ClassVar

from .base import FieldChecks


@dataclass(frozen=True, kw_only=True)
class FgdConfig:
    """Node FGD: focal and global distillation; defaults are the authors' for RetinaNet.

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "FGD"

    # Divides the features' magnitudes before the softmaxes of the attention; 0.8 for FCOS.
    temperature: float = 0.5
    # Weight of the loss in boxes of ground truth; 1.6e-3 for FCOS, 5e-5 for Faster R-CNN.
    foreground_weight: float = 1e-3
    # Weight of the loss outside of them; 8e-4 for FCOS, 2.5e-5 for Faster R-CNN.
    background_weight: float = 5e-4
    # Weight of the attention loss; 8e-4 for FCOS, 5e-5 for Faster R-CNN.
    attention_weight: float = 5e-4
    # Weight of the loss after the context blocks; 8e-6 for FCOS, 5e-7 for Faster R-CNN.
    relation_weight: float = 5e-6

    def __post_init__(self) -> None:
        checks = FieldChecks(self)
        checks.number("temperature", above=0.0, at_most=1e9)
        for part in ("foreground", "background", "attention", "relation"):
            checks.number(f"{part}_weight", at_most=1e9)
