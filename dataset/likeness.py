"""How much two renderings of a view differ, told by a sample of their pixels.

A checksum says that they differ, not by how much, and that decides what to do: another version of
an image library moves pixels by a level or two and harms nothing; another image, or a view that is
mirrored where the other is not, makes a teacher's answers wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Of 53 photographs at 240 px, other resampling (bicubic, bilinear without antialiasing) and JPEG
# anew at quality 75 differed by up to 5.7 levels on average, mirrored views by 17 and more.
MOST_TOLERATED = 10.0


@dataclass(frozen=True, kw_only=True)
class Likeness:
    """Differences of two samples, in levels of 255.

    Attributes:
        mean: of all absolute differences.
        largest: of them.
    """

    mean: float
    largest: int

    @property
    def is_tolerable(self) -> bool:
        """Whether another version of a library may be the cause."""
        return self.mean <= MOST_TOLERATED

    def __str__(self) -> str:
        return f"by {self.mean:.2g} of 255 levels on average, at most {self.largest}"


def compare_samples(one: NDArray[Any], other: NDArray[Any]) -> Likeness:
    """Compare two samples, uint8 of equal shapes."""
    gap = np.abs(one.astype(np.int16) - other.astype(np.int16))
    return Likeness(mean=float(gap.mean()), largest=int(gap.max()))
