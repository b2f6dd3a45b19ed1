"""Node STUDENT_VIEWS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from configs.rules import Number, Several

from .base import FieldChecks

_SHARE = Number(above=0.0, at_most=1.0)
# Pixels. Beyond, nothing is left of an image.
_SIGMA = Number(above=0.0, at_most=100.0)


@dataclass(frozen=True, kw_only=True)
class StudentViewsConfig:
    """Node STUDENT_VIEWS: what is done to a view for the student alone; the teacher sees it clean.

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "STUDENT_VIEWS"

    # Range, as in the node VIEWS.
    brightness: tuple[float, ...] = (1.0, 1.0)
    # Likewise.
    contrast: tuple[float, ...] = (1.0, 1.0)
    # Likewise.
    saturation: tuple[float, ...] = (1.0, 1.0)
    # Likewise.
    hue: tuple[float, ...] = (0.0, 0.0)
    # Probability that a view loses its colours.
    grayscale: float = 0.0
    # Probability of a Gaussian blur, and the range of its sigma in pixels, such as (0.5, 0.1, 2.0).
    # Empty: none.
    blur: tuple[float, ...] = ()
    # Probability that a rectangle becomes grey, and the range of its share of the view's area, such
    # as (0.25, 0.02, 0.2). Empty: none.
    erasing: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        checks = FieldChecks(self)
        checks.colours()
        checks.number("grayscale", at_most=1.0)
        self._check_chance(checks, "blur", _SIGMA)
        self._check_chance(checks, "erasing", _SHARE)

    def _check_chance(self, checks: FieldChecks, name: str, strength: Number) -> None:
        """A probability with the two ends of a range, or nothing."""
        checks.several(name, Several(item=Number(), at_least=3, at_most=3), empty=True)
        values = tuple(float(one) for one in getattr(self, name))
        if values:
            chance, low, high = values
            if not (_SHARE.accepts(chance) and all(map(strength.accepts, (low, high)))):
                ends = f"then two numbers, each {strength.expected}"
                raise checks.refusal(name, f"() or a probability above 0 and at most 1, {ends}")
            if low > high:
                raise checks.refusal(name, "the lower end of the range first")
        object.__setattr__(self, name, values)
