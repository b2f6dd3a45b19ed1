"""The images of a COCO annotation file: their table, their digest, and safe paths to them."""

from __future__ import annotations

import hashlib
import itertools
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dataset.coco_json import iterate_sections

_INT64_MAX = 2**63 - 1
_INT32_MAX = 2**31 - 1


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageTable:
    """The images of one annotation file, sorted by id.

    Attributes:
        ids: (N,) int64, unique, ascending.
        file_names: N names relative to the image root.
        heights: (N,) int32, pixels of the stored image, after EXIF rotation.
        widths: (N,) int32, likewise.
    """

    ids: NDArray[np.int64]
    file_names: list[str]
    heights: NDArray[np.int32]
    widths: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.file_names)

    def first(self, count: int) -> ImageTable:
        """Return the table of the `count` images with the lowest ids; 0 keeps all."""
        if count < 0:
            raise ValueError(f"the number of images to keep must not be negative, got {count}")
        return self.rows(np.arange(min(count or len(self), len(self))))

    def rows(self, numbers: NDArray[np.intp]) -> ImageTable:
        """Return the table of these rows; the numbers ascend."""
        return ImageTable(
            ids=self.ids[numbers],
            file_names=[self.file_names[number] for number in numbers.tolist()],
            heights=self.heights[numbers],
            widths=self.widths[numbers],
        )


def load_images(path: str | os.PathLike[str]) -> ImageTable:
    """Read the images of a COCO annotation file.

    The whole file is parsed, so that a file that is cut off is noticed here, but only the images
    are kept.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not COCO annotations; the message names the file, the image and
            what is wrong.
    """
    name = os.fspath(path)
    found = False
    rows: list[tuple[int, str, int, int]] = []
    for section, value, is_element in iterate_sections(name):
        if section != "images":
            continue
        if not is_element and value is not None:
            raise ValueError(f"{name}: `images` must be a list, got {_kind(value)}")
        found = True
        if is_element:
            rows.append(parse_image(value, len(rows), name))
    if not found:
        raise ValueError(f"{name}: not COCO annotations, there is no list `images`")
    if not rows:
        raise ValueError(f"{name}: the list `images` is empty")
    rows.sort(key=lambda row: row[0])
    _refuse_duplicates(rows, name)
    ids, file_names, heights, widths = zip(*rows, strict=True)
    return ImageTable(
        ids=np.array(ids, dtype=np.int64),
        file_names=list(file_names),
        heights=np.array(heights, dtype=np.int32),
        widths=np.array(widths, dtype=np.int32),
    )


def parse_image(image: Any, number: int, source: str) -> tuple[int, str, int, int]:
    """Check one element of `images` and return (id, file name, height, width).

    Args:
        image: the decoded element.
        number: its position in the list, for the message.
        source: the annotation file, for the message.

    Raises:
        ValueError: a key is missing or holds something else than it should.
    """
    if not isinstance(image, dict):
        raise ValueError(f"{source}: images[{number}] must be an object, got {_kind(image)}")
    image_id = _integer(image, "id", f"{source}: images[{number}]", -_INT64_MAX, _INT64_MAX)
    where = f"{source}: image {image_id}"
    file_name = image.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        raise ValueError(f"{where}: `file_name` must be a name, got {_kind(file_name)}")
    try:
        image_path("", file_name)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    height = _integer(image, "height", where, 1, _INT32_MAX)
    width = _integer(image, "width", where, 1, _INT32_MAX)
    return image_id, file_name, height, width


def _integer(element: dict[str, Any], key: str, where: str, low: int, high: int) -> int:
    value = element.get(key)
    # bool is an int to Python, but no id or size.
    if not isinstance(value, int) or isinstance(value, bool):
        raise ValueError(f"{where}: `{key}` must be an integer, got {_kind(value)}")
    if not low <= value <= high:
        raise ValueError(f"{where}: `{key}` must lie in [{low}, {high}], got {value}")
    return value


def _kind(value: Any) -> str:
    """Name a value for a message, shortened: it comes from a file of unknown origin."""
    if value is None:
        return "nothing"
    shown = repr(value)
    return f"{type(value).__name__} {shown if len(shown) <= 40 else shown[:37] + '...'}"


def _refuse_duplicates(rows: list[tuple[int, str, int, int]], name: str) -> None:
    for earlier, later in itertools.pairwise(rows):
        if earlier[0] == later[0]:
            raise ValueError(
                f"{name}: image id {later[0]} is given twice ({earlier[1]!r} and {later[1]!r})"
            )


def image_path(root: str | os.PathLike[str], file_name: str) -> str:
    """Join the image root and a `file_name` from an annotation file.

    Annotation files come from anywhere, so a name must not lead out of the root. Links inside
    the root are the user's own doing and are followed.

    Raises:
        ValueError: the name is empty, absolute, or has a `..` in it.
    """
    parts = file_name.replace("\\", "/").split("/")
    has_drive = len(parts[0]) == 2 and parts[0][1] == ":"
    if not file_name or parts[0] == "" or has_drive or ".." in parts or "\0" in file_name:
        raise ValueError(
            f"file_name {file_name!r} leads out of the image root; it must be a relative path "
            "without `..`"
        )
    return os.path.join(os.fspath(root), file_name)


def require_images(table: ImageTable, root: str | os.PathLike[str]) -> None:
    """Check that every image file is there, before long work starts; nothing is opened.

    Folders are listed rather than files asked for one by one: on a network disk that is the
    difference between a second and minutes.

    Raises:
        FileNotFoundError: images are missing; the message counts them and names the first.
        ValueError: a file name leads out of the root.
    """
    listings: dict[str, set[str]] = {}
    missing = []
    for file_name in table.file_names:
        folder, name = os.path.split(image_path(root, file_name))
        if folder not in listings:
            listings[folder] = set(os.listdir(folder)) if os.path.isdir(folder) else set()
        if name not in listings[folder]:
            missing.append(file_name)
    if missing:
        raise FileNotFoundError(
            f"{os.fspath(root)}: {len(missing)} of {len(table)} images are missing, the first is "
            f"{missing[0]!r}; `python -m dataset check` lists them all"
        )


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
    rows = zip(
        table.ids.tolist(),
        table.heights.tolist(),
        table.widths.tolist(),
        table.file_names,
        strict=True,
    )
    for image_id, height, width, file_name in rows:
        line = f"{image_id}\t{height}\t{width}\t{file_name}\0"
        # JSON may hold lone surrogates, which plain UTF-8 refuses.
        yield line.encode("utf-8", "surrogatepass")


def annotations_digest(path: str | os.PathLike[str]) -> str:
    """SHA-256 of the annotation file's bytes, to notice that something else in it changed."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
