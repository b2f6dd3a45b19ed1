"""Proof that Stage 2 shows the student the very pixels that the teacher saw."""

from __future__ import annotations

import logging

from dataset.views import RenderedView

logger = logging.getLogger(__name__)


class PixelCheck:
    """Compares a view's CRC32C with the cached one.

    Strict: a difference is an error. Tolerant: it is logged, once for each image and worker.
    """

    def __init__(self, *, strict: bool) -> None:
        self._strict = strict
        self._logged: set[str] = set()

    def check(self, expected: int, rendered: RenderedView, *, file_name: str, view: int) -> None:
        """Raises:

        ValueError: strict, and the pixels are not those that the teacher saw.
        """
        if rendered.crc32c == expected:
            return
        message = (
            f"{file_name}, view {view}: the pixels differ from those the teacher saw (CRC32C "
            f"{rendered.crc32c:08x}, cached {expected:08x}). Likely causes: the image was changed, "
            "or another Pillow version resizes differently"
        )
        if self._strict:
            raise ValueError(
                f"{message}. Dump the cache again, or set CACHE.PIXELS tolerate if the libraries "
                "were upgraded on purpose"
            )
        if file_name not in self._logged:
            self._logged.add(file_name)
            logger.warning(message)
