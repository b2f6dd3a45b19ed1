"""What a step is: one augmentation of a view.

Shape letter: N views.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from configs.imports import failure
from storage.resources import exhausted

from . import seeds as hashing

if TYPE_CHECKING:
    from detectron2.data.transforms import Transform

    from configs.nodes import ViewsConfig


@dataclass(frozen=True)
class Step(ABC):
    """One augmentation: a frozen dataclass whose fields are its parameters, JSON values all.

    The outcome of a step follows from its parameters, its own draws of the view's seed and the
    view's size before it; from nothing else.

    Attributes:
        name: what `VIEWS.STEPS` and a cache's manifest call it.
        version: to be raised when the same parameters come to mean other pixels.
        draws: numbers of its draws, which no other step has; those from 1000 are for steps of the
            user's.
        remedy: what to do about an image of which it would leave no pixels.
        cuts: whether objects may lie outside afterwards, whole or in part.
        in_plain: whether the views of VIEWS.PLAIN have it.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    draws: ClassVar[tuple[int, ...]] = ()
    remedy: ClassVar[str] = "leave the image out by DATASET.IMAGE_LIST"
    cuts: ClassVar[bool] = False
    in_plain: ClassVar[bool] = True

    @classmethod
    def from_config(cls, config: ViewsConfig) -> Self | None:
        """The step as the node VIEWS has it; None where the node does not use it."""
        return cls()

    @abstractmethod
    def draw(self, seeds: NDArray[np.uint64], sizes: NDArray[np.int64]) -> NDArray[Any]:
        """Decide what happens to each of N views.

        Args:
            seeds: (N,) seeds of the views, for `uniform` and `choose`.
            sizes: (N, 2) height and width before the step, pixels.

        Returns:
            (N, ...) one outcome for each view, in whatever form the other methods take.
        """

    def sizes_after(self, outcomes: NDArray[Any], sizes: NDArray[np.int64]) -> NDArray[Any]:
        """Heights and widths after the step, (N, 2) pixels, given those before it: the same."""
        return sizes

    @abstractmethod
    def transforms(self, outcome: Any, size: tuple[int, int]) -> list[Transform]:
        """What is done to the pixels and boxes of one view, as detectron2's transforms.

        Args:
            outcome: the view's row of what `draw` gave, as Python values (`ndarray.tolist`).
            size: height and width before the step, pixels.
        """

    def largest_size(self, largest: tuple[int, int]) -> tuple[int, int]:
        """The largest shorter and longer side after the step, given those before it: the same."""
        return largest

    def uniform(self, seeds: NDArray[np.uint64], which: int = 0) -> NDArray[np.float64]:
        """Draw (N,) numbers of 0 or more and below 1, by the `which`-th of the step's draws."""
        return hashing.below_one(hashing.draw(seeds, self._number(which)))

    def choose(
        self, seeds: NDArray[np.uint64], count: int | NDArray[np.int64], which: int = 0
    ) -> NDArray[np.int64]:
        """Draw (N,) numbers from 0 to `count` - 1, by the `which`-th of the step's draws.

        `count` is one for all, or (N,) counts.
        """
        return hashing.one_of(hashing.draw(seeds, self._number(which)), count)

    def _number(self, which: int) -> int:
        if not 0 <= which < len(self.draws):
            raise ValueError(f"`draws` has no number {which}, it is {self.draws}; add one to it")
        return self.draws[which]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """Everything that decides the step's outcome, as JSON."""
        try:
            parameters = json.loads(json.dumps(asdict(self), allow_nan=False))
        except (TypeError, ValueError) as error:
            raise ValueError(f"step {self.name}: its fields must be JSON values: {error}") from None
        return {"name": self.name, "version": self.version, "parameters": parameters}


@contextmanager
def named(step: Step) -> Iterator[None]:
    """Say of what a step's code raises which step it was, and where: no image is to blame.

    Raises:
        ValueError: it raised anything, but for what this machine lacks.
    """
    try:
        yield
    except Exception as error:
        if exhausted(error):
            raise
        raise ValueError(f"step {step.name}: {failure(error)}") from error
