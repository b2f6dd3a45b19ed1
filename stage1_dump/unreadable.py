"""The images that a dump could not read, in a list that `DATASET.EXCLUDE` takes as it is."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from dataset.annotations import MissingImagesError, require_images

from .prepare import Prepared

logger = logging.getLogger(__name__)

LIST_NAME = "unreadable_images.txt"


class UnreadableList:
    """The list in OUTPUT_DIR: an image a line, with its file and what is wrong as a comment.

    Ranks and later runs append to it, each image once as far as they know of each other. It also
    names what DATASET.EXCLUDE leaves out already, so that the list can take that one's place.
    """

    def __init__(self, prepared: Prepared) -> None:
        """Args: the dump."""
        self._path = Path(prepared.setup.cfg.OUTPUT_DIR) / LIST_NAME
        source = f"DATASET.EXCLUDE {prepared.settings.dataset.exclude}"
        self._excluded = dict.fromkeys(prepared.excluded, source)

    def add(self, reasons: Mapping[int, str]) -> None:
        """Append images that are not in it; a disk that refuses stops no dump.

        Args:
            reasons: image id to what is wrong with which file.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Whole lines in one write to the end: no rank breaks or loses those of another.
            with open(self._path, "ab", buffering=0) as file:
                file.write(self._new_lines({**self._excluded, **reasons}))
        except OSError as error:
            logger.warning("could not list the unreadable images: %s", error)

    def remedy(self) -> str:
        """Say how to leave the listed images out, and how many they are; "" without a list."""
        count = len(_ids(self._text()))
        name = shlex.quote(str(self._path))
        return f"to leave them out: DATASET.EXCLUDE {name} ({count} images)" if count else ""

    def _new_lines(self, reasons: Mapping[int, str]) -> bytes:
        text = self._text()
        known = _ids(text)
        lines = [
            f"{image_id}  # {' '.join(reason.split())}\n"
            for image_id, reason in reasons.items()
            if str(image_id) not in known
        ]
        cut = "\n" if text and not text.endswith("\n") else ""
        # A file name may hold what is no UTF-8.
        return (cut + "".join(lines)).encode(errors="backslashreplace")

    def _text(self) -> str:
        try:
            return self._path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""


def _ids(text: str) -> set[str]:
    return {line.partition("#")[0].strip() for line in text.splitlines()} - {""}


def require_written_images(prepared: Prepared) -> None:
    """Find the images of a dump that it does not leave out; list those that are missing.

    Raises:
        FileNotFoundError: images are missing; the message says how to leave them out, unless none
            of a data set is there at all.
        ValueError: a file name leads out of the root.
    """
    unreadable = UnreadableList(prepared)
    errors = []
    for images, root in prepared.written_images():
        try:
            require_images(images, root)
        except MissingImagesError as error:
            if error.is_everything:
                raise
            paths = {key: os.path.join(root, one) for key, one in error.missing.items()}
            unreadable.add({image_id: f"{path}: missing" for image_id, path in paths.items()})
            errors.append(error)
    if errors:
        remedy = unreadable.remedy()
        raise FileNotFoundError(f"{errors[0]}; {remedy}" if remedy else str(errors[0]))
