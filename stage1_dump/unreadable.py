"""The images that a dump could not read, in a list that `DATASET.EXCLUDE` takes as it is."""

from __future__ import annotations

import logging
import os
import shlex
import socket
from collections.abc import Mapping
from pathlib import Path

from dataset.image_files import MissingImagesError, require_images
from dataset.subset import read_image_list

from .prepare import Prepared

logger = logging.getLogger(__name__)

LIST_NAME = "unreadable_images.txt"


class UnreadableList:
    """The list in OUTPUT_DIR: an image a line, with its file and what is wrong as a comment.

    Ranks append to it what they find; nothing that another one found is lost while it may be
    needed. Whoever offers the list with `remedy` first takes off all else, such as what an earlier
    run could not read: at its end a rank has tried every shard that nobody committed, and so knows
    of all images that stop the dump; where files are missing, nothing has been read, and what else
    is wrong is found by the next run.

    It also names what DATASET.EXCLUDE leaves out already, so that the list can take that one's
    place.
    """

    def __init__(self, prepared: Prepared) -> None:
        """Args: the dump."""
        self._path = Path(prepared.setup.cfg.OUTPUT_DIR) / LIST_NAME
        path = prepared.settings.dataset.exclude
        source = f"DATASET.EXCLUDE {path}"
        excluded = read_image_list("DATASET.EXCLUDE", path).tolist() if path else ()
        # All of them, also those of images that this dump has nothing to do with.
        self._excluded = {str(image_id): source for image_id in excluded}

    def add(self, reasons: Mapping[int, str]) -> None:
        """Append images that are not in it; a disk that refuses stops no dump.

        Args:
            reasons: image id to what is wrong with which file.
        """
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            # Whole lines in one write to the end: no rank breaks or loses those of another.
            with open(self._path, "ab", buffering=0) as file:
                file.write(_encoded(self._lacking(self._text(), reasons)))
        except OSError as error:
            self._warn(error)

    def remedy(self, reasons: Mapping[int, str]) -> str:
        """Say how to leave out these images, how many they are with those left out already.

        The list names them, and no other, from now on; without any there is none, unless it names
        what is left out already.

        Args:
            reasons: of all images that stop the dump, none of them left out; as for `add`.

        Returns:
            One line; "" if there are none, or they cannot be listed.
        """
        before = self._text()
        if not (reasons or before):
            return ""
        # What is wrong with an image may have changed; why one was left out is known by its line.
        lines = before.splitlines(keepends=True)
        kept = "".join(line for line in lines if _id(line) in {*self._excluded, ""})
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._replace(kept + self._lacking(kept, reasons))
        except OSError as error:
            self._warn(error)
            return ""
        if not reasons:
            return ""
        name = shlex.quote(str(self._path))
        count = len(reasons) + len(self._excluded)
        return f"to leave them out: DATASET.EXCLUDE {name} ({count} images)"

    def _lacking(self, text: str, reasons: Mapping[int, str]) -> str:
        """The lines that a list with this text lacks."""
        known = {_id(line) for line in text.splitlines()}
        wanted = {**self._excluded, **{str(image_id): one for image_id, one in reasons.items()}}
        lines = [
            f"{image_id}  # {' '.join(reason.split())}\n"
            for image_id, reason in wanted.items()
            if image_id not in known
        ]
        cut = "\n" if text and not text.endswith("\n") else ""
        return cut + "".join(lines)

    def _replace(self, text: str) -> None:
        if not text:
            self._path.unlink(missing_ok=True)
            return
        # In one step: a command that starts now may read it as its DATASET.EXCLUDE.
        part = self._path.with_name(f"{LIST_NAME}.{socket.gethostname()}-{os.getpid()}")
        try:
            part.write_bytes(_encoded(text))
            part.replace(self._path)
        finally:
            part.unlink(missing_ok=True)

    def _text(self) -> str:
        try:
            return self._path.read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def _warn(self, error: OSError) -> None:
        logger.warning("could not list the unreadable images: %s", error)


def _id(line: str) -> str:
    return line.partition("#")[0].strip()


def _encoded(text: str) -> bytes:
    # A file name may hold what is no UTF-8.
    return text.encode(errors="backslashreplace")


def require_written_images(prepared: Prepared) -> None:
    """Find the images of a dump that it does not leave out; list those that are missing.

    Raises:
        FileNotFoundError: images are missing; the message says how to leave them out, unless none
            of a data set is there at all.
        ValueError: a file name leads out of the root.
    """
    reasons: dict[int, str] = {}
    errors = []
    for images, root in prepared.written_images():
        try:
            require_images(images, root)
        except MissingImagesError as error:
            if error.is_everything:
                raise
            paths = {key: os.path.join(root, one) for key, one in error.missing.items()}
            reasons |= {image_id: f"{path}: missing" for image_id, path in paths.items()}
            errors.append(error)
    if errors:
        remedy = UnreadableList(prepared).remedy(reasons)
        raise FileNotFoundError(f"{errors[0]}; {remedy}" if remedy else str(errors[0]))
