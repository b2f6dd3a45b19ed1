"""Digests of an annotation file: of its images, and of the whole."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from typing import Any

from dataset.tables import ImageTable


def dataset_fingerprint(table: ImageTable) -> dict[str, Any]:
    """Digest what a plan depends on: id, file name, height and width of every image, by id.

    Returns:
        `{"sha256": hex digest, "images": N}`. The digest is over one line
        `id <tab> height <tab> width <tab> file name` an image, UTF-8, each ended by a NUL, which
        no file name can hold.
    """
    digest = hashlib.sha256()
    for line in _fingerprint_lines(table):
        digest.update(line)
    return {"sha256": digest.hexdigest(), "images": len(table)}


def _fingerprint_lines(table: ImageTable) -> Iterator[bytes]:
    for image_id, file_name, height, width in table:
        line = f"{image_id}\t{height}\t{width}\t{file_name}\0"
        # JSON may hold lone surrogates, which plain UTF-8 refuses.
        yield line.encode("utf-8", "surrogatepass")


def annotations_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the annotation file's bytes, to notice that something else in it changed."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
