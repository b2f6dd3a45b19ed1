"""Node VIEWS."""

from dataclasses import dataclass
from typing import ClassVar

from configs.rules import Number, Rule, Several, Whole
from configs.stock_limits import MAX_SIDE

from .base import FieldChecks

MAX_SEED = 2**63 - 1
# More is a mistake: a view of every image costs what an epoch of the teacher does.
MAX_VIEWS = 10_000
_SIDE = Whole(1, MAX_SIDE)
# Of detectron2's INPUT.CROP.TYPE: what the two numbers of a size are.
_CROPS: dict[str, Rule] = {
    "relative": Number(above=0.0, at_most=1.0),
    "relative_range": Number(above=0.0, at_most=1.0),
    "absolute": _SIDE,
    "absolute_range": _SIDE,
}


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
    # Type and size of a crop before resizing, as detectron2's INPUT.CROP has them, such as
    # ("relative_range", 0.9, 0.9). Empty: none.
    crop: tuple[str | float, ...] = ()
    # Lengths of the shortest edge to choose from, pixels. Empty: SCALE_RANGE instead.
    scales: tuple[int, ...] = (800,)
    # Longest edge allowed after resizing, pixels; 0 with SCALE_RANGE.
    max_size: int = 1333
    # Large-scale jitter, such as (0.1, 2.0): each view fits inside FIXED_SIZE times a number of
    # this range. Empty: SCALES instead.
    scale_range: tuple[float, ...] = ()
    # Height and width to which every view is cut or padded, pixels. Empty: as resizing leaves it.
    fixed_size: tuple[int, ...] = ()
    # Probability of a horizontal flip, 0 to 1.
    flip: float = 0.5
    # Probability of a vertical flip, 0 to 1.
    flip_vertical: float = 0.0
    # Range of the factor by which levels grow.
    brightness: tuple[float, ...] = (1.0, 1.0)
    # Range of the factor by which their distance from the mean grows.
    contrast: tuple[float, ...] = (1.0, 1.0)
    # Range of the factor by which their distance from grey grows.
    saturation: tuple[float, ...] = (1.0, 1.0)
    # Range of the turn of hues, in shares of their circle.
    hue: tuple[float, ...] = (0.0, 0.0)
    # Numbers of the views without crop and colour, among them some that are not dumped yet.
    plain: tuple[int, ...] = ()
    # Numbers of the views that the last iterations of a training show. Empty: all.
    last: tuple[int, ...] = ()
    # How many iterations these are; 0 without LAST.
    last_iters: int = 0
    # Steps of the user's own that follow, by the names that modules of IMPORTS register them under.
    steps: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = FieldChecks(self)
        checks.integer("seed", at_least=0, at_most=MAX_SEED)
        checks.integer("num", at_least=1, at_most=MAX_VIEWS)
        self._check_crop(checks)
        checks.several("fixed_size", Several(item=_SIDE, at_least=2, at_most=2), empty=True)
        self._check_sizes(checks)
        checks.number("flip", at_most=1.0)
        checks.number("flip_vertical", at_most=1.0)
        checks.colours()
        checks.names("steps")
        self._check_parts(checks)

    def _check_parts(self, checks: FieldChecks) -> None:
        for name in ("plain", "last"):
            checks.several(name, Several(item=Whole(0, MAX_VIEWS - 1)), empty=True)
            if len(set(getattr(self, name))) < len(getattr(self, name)):
                raise checks.refusal(name, "each number once")
        checks.integer("last_iters", at_least=0)
        if bool(self.last) != bool(self.last_iters):
            needed = (
                f"some iterations for VIEWS.LAST {self.last}" if self.last else "0 without LAST"
            )
            raise checks.refusal("last_iters", needed)

    def _check_crop(self, checks: FieldChecks) -> None:
        object.__setattr__(self, "crop", crop := _as_tuple(self.crop))
        if crop == ():
            return
        if not isinstance(crop, tuple) or len(crop) != 3 or crop[0] not in tuple(_CROPS):
            raise checks.refusal("crop", f"() or one of {', '.join(_CROPS)} with two numbers")
        kind, *size = crop
        rule = _CROPS[str(kind)]
        if not all(rule.accepts(one) for one in size):
            raise checks.refusal("crop", f"two numbers for {kind}, each {rule.expected}")
        if kind == "absolute_range" and size[0] > size[1]:
            raise checks.refusal("crop", "the least side before the most for absolute_range")
        if isinstance(rule, Number):
            object.__setattr__(self, "crop", (kind, *(float(one) for one in size)))

    def _check_sizes(self, checks: FieldChecks) -> None:
        """One of the two ways to resize, and nothing of the other."""
        factors = Several(item=Number(above=0.0), at_least=2, at_most=2)
        checks.several("scale_range", factors, empty=True)
        object.__setattr__(self, "scale_range", tuple(float(one) for one in self.scale_range))
        checks.several("scales", Several(item=_SIDE), empty=bool(self.scale_range))
        if not self.scale_range:
            checks.integer("max_size", at_least=1, at_most=MAX_SIDE)
            if self.max_size < max(self.scales):
                needed = f"at least the largest of VIEWS.SCALES {self.scales}"
                raise checks.refusal("max_size", needed)
            return
        if self.scales:
            raise checks.refusal("scales", "() with VIEWS.SCALE_RANGE, which resizes instead")
        if type(self.max_size) is not int or self.max_size != 0:
            raise checks.refusal("max_size", "0 with VIEWS.SCALE_RANGE, which resizes instead")
        if not self.fixed_size:
            raise checks.refusal("fixed_size", "a height and width for VIEWS.SCALE_RANGE")
        most = MAX_SIDE / max(self.fixed_size)
        if not self.scale_range[0] <= self.scale_range[1] <= most:
            raise checks.refusal("scale_range", f"the lower end first, and at most {most:g}")


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value
