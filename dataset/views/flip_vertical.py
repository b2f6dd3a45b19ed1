"""The step `flip_vertical`: upside down."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar

from numpy.typing import NDArray

from .flip import Flip

if TYPE_CHECKING:
    from detectron2.data.transforms import Transform


@dataclass(frozen=True)
class FlipVertical(Flip):
    """detectron2's vertical flip; its outcome is whether the view is upside down."""

    name: ClassVar[str] = "flip_vertical"
    draws: ClassVar[tuple[int, ...]] = (9,)

    def transforms(self, outcome: Any, size: tuple[int, int]) -> list[Transform]:
        """See `Step`."""
        return [_upside_down()(size[0])] if outcome else []


@cache
def _upside_down() -> type[Transform]:
    from detectron2.data.transforms import VFlipTransform

    class UpsideDown(VFlipTransform):
        """Without PyTorch, which detectron2's takes and which warns of read-only pixels."""

        def apply_image(self, img: NDArray[Any]) -> NDArray[Any]:
            return img[::-1]

    return UpsideDown
