"""Node VIEWS."""

from dataclasses import dataclass
from typing import ClassVar

from configs.rules import Several, Whole
from configs.stock_limits import MAX_SIDE

from .base import FieldChecks

MAX_SEED = 2**63 - 1
# More is a mistake: a view of every image costs what an epoch of the teacher does.
MAX_VIEWS = 10_000


@dataclass(frozen=True, kw_only=True)
class ViewsConfig:
    """Node VIEWS: the deterministic augmentation that both stages apply.

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "VIEWS"

    # Base seed; a view's own seed is a hash of (seed, image id, view number).
    seed: int = 0
    # Views of each image in the cache. More views only append records.
    num: int = 1
    # Lengths of the shortest edge to choose from, pixels.
    scales: tuple[int, ...] = (800,)
    # Longest edge allowed after resizing, pixels.
    max_size: int = 1333
    # Probability of a horizontal flip, 0 to 1.
    flip: float = 0.5
    # Steps of the user's own that follow, by the names that modules of IMPORTS register them under.
    steps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = FieldChecks(self)
        checks.integer("seed", at_least=0, at_most=MAX_SEED)
        checks.integer("num", at_least=1, at_most=MAX_VIEWS)
        checks.check("scales", Several(item=Whole(1, MAX_SIDE)))
        object.__setattr__(self, "scales", tuple(self.scales))
        checks.integer("max_size", at_least=1, at_most=MAX_SIDE)
        checks.number("flip", at_most=1.0)
        checks.names("steps")
        if self.max_size < max(self.scales):
            raise checks.refusal("max_size", f"at least the largest of VIEWS.SCALES {self.scales}")
