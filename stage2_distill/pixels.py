"""Proof that Stage 2 shows the student the very pixels that the teacher saw."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from dataset.likeness import MOST_TOLERATED, compare_samples
from dataset.views import RenderedView
from storage.schema import PIXELS_CRC, PIXELS_SAMPLE, SAMPLE_SIDE

logger = logging.getLogger(__name__)


class PixelCheck:
    """Compares a view's CRC32C with the cached one.

    Strict: a difference is an error. Tolerant: it is logged, once for each image and worker, unless
    the two are so different that they are not of one image.
    """

    def __init__(self, *, strict: bool, steps: Sequence[str] = ()) -> None:
        """Args: whether it is strict, and the names of the user's own steps of a view."""
        self._strict = strict
        self._of_steps = ""
        if steps:
            self._of_steps = (
                f" A step of yours ({', '.join(steps)}) may have changed, or draw by something else"
                " than its seeds."
            )
        self._logged: set[str] = set()

    def check(
        self,
        record: Mapping[str, NDArray[Any]],
        rendered: RenderedView,
        *,
        file_name: str,
        view: int,
    ) -> None:
        """Compare one view with what the cache knows of it.

        Args:
            record: fields of the cached record; CRC32C and sample of its pixels are among them.
            rendered: the view.
            file_name, view: of it, for messages.

        Raises:
            ValueError: strict, and the pixels are not those that the teacher saw, or tolerant, and
                no other version of a library explains by how much they differ.
        """
        expected = int(record[PIXELS_CRC])
        if rendered.crc32c == expected:
            return
        likeness = compare_samples(record[PIXELS_SAMPLE], rendered.sample(SAMPLE_SIDE))
        message = (
            f"{file_name}, view {view}: the pixels differ from those the teacher saw, in "
            f"{SAMPLE_SIDE**2} of them {likeness} (CRC32C {rendered.crc32c:08x}, cached "
            f"{expected:08x}). "
        )
        if not likeness.is_tolerable:
            raise ValueError(
                f"{message}That is another image, or another view of it: no version of a library "
                f"makes more than {MOST_TOLERATED:g} levels.{self._of_steps} Bring back the image, "
                "or dump to another CACHE.LOCATION"
            )
        message += (
            "Likely causes: the image was changed, or another Pillow version resizes differently."
            f"{self._of_steps}"
        )
        if self._strict:
            raise ValueError(
                f"{message} Bring back the image, dump to another CACHE.LOCATION, or set "
                "CACHE.PIXELS tolerate if the libraries were upgraded on purpose"
            )
        if file_name not in self._logged:
            self._logged.add(file_name)
            logger.warning(message)
