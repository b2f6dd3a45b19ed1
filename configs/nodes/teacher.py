"""Node TEACHER."""

from dataclasses import dataclass
from typing import ClassVar

from configs.stock_limits import WEIGHTS_SCHEMES

from .base import FieldChecks


@dataclass(frozen=True, kw_only=True)
class TeacherConfig:
    """Node TEACHER: which teacher, and where a distilled step takes its outputs from.

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "TEACHER"
    SOURCES: ClassVar[tuple[str, ...]] = ("cache", "live", "none")
    PRECISIONS: ClassVar[tuple[str, ...]] = ("float32", "tf32", "bfloat16", "float16")
    INHERITED: ClassVar[tuple[str, ...]] = ("none", "head", "neck+head")

    # The teacher's own YAML, relative to the file that states it, like `_BASE_`; or
    # model_zoo://NAME, one of those that detectron2 ships.
    config: str = ""
    # The teacher's weights; path relative to the working directory, or a detectron2 URL.
    weights: str = ""
    # cache: read the teacher cache; live: run the teacher in every step; none: ground truth only.
    source: str = "cache"
    # Images in one teacher forward. It moves the last bits, so the manifest records it.
    batch: int = 8
    # Arithmetic of the teacher's forward, in a dump and live. tf32 is float32 whose products a GPU
    # may round to 10 bits of mantissa.
    precision: str = "float32"
    # What the student starts with of the teacher's weights, where names and shapes agree: nothing,
    # its head, or also its neck, the layers between the network and the pyramid.
    inherit: str = "none"
    # Names of the teacher's classes, all of them, in the order of its outputs, for a student of
    # some of them or in another order; its own are the categories of its data. Empty: the same.
    classes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        checks = FieldChecks(self)
        checks.place("config", ("model_zoo",))
        checks.place("weights", WEIGHTS_SCHEMES)
        checks.choice("source", self.SOURCES)
        checks.integer("batch", at_least=1, at_most=2**16)
        checks.choice("precision", self.PRECISIONS)
        checks.choice("inherit", self.INHERITED)
        checks.names("classes")
