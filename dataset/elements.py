"""The rules of one image, category or object of an annotation file: what is filled in or refused.

Filled in is what tools leave out and what has one meaning: whole floats are integers; no or null
`iscrowd` is 0, and true or false are 1 or 0; no or null `area` is that of the box. `segmentation`
is not read at all: boxes are all that is used, so no form of it costs an object its box.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from dataset.image_files import refuse_escape

_INT64_MAX = 2**63 - 1
_INT32_MAX = 2**31 - 1
# No image is larger, and arithmetic on boxes stays far from infinity.
MAX_COORDINATE = float(_INT32_MAX)

_REMEDIES = {
    "id": "a number of its own",
    "image_id": "the `id` of its image",
    "category_id": "the `id` of its category",
    "height": "the image's height in pixels",
    "width": "the image's width in pixels",
}

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        image: file name of the image, "image <id>" where there is none, or "" for the dataset.
        kind: a word to group by: section, labels, image, duplicate, missing, unreadable, size,
            annotation, category, box.
        message: what was expected and what was found.
        severity: "error" or "warning".
    """

    image: str
    kind: str
    message: str
    severity: Severity = "error"

    @property
    def sentence(self) -> str:
        """The image and the message."""
        return f"{self.image}: {self.message}" if self.image else self.message

    def __str__(self) -> str:
        return f"{self.severity}: {self.sentence}"


class ElementError(ValueError):
    """An element that is refused.

    Attributes:
        kind: as of a `Problem`.
        key: what holds the wrong value; "" for the element itself.
    """

    def __init__(self, message: str, *, kind: str, key: str = "") -> None:
        super().__init__(message)
        self.kind = kind
        self.key = key


class ObjectRow(NamedTuple):
    """One object, its box as left, top, width and height, pixels; see `ObjectTable`."""

    id: int
    image_id: int
    category_id: int
    is_crowd: bool
    area: float
    box: tuple[float, ...]


def parse_image(image: Any, number: int) -> tuple[int, str, int, int]:
    """Check one element of `images` and return (id, file name, height, width).

    Args:
        image: the decoded element.
        number: its position in the list, for the message.

    Raises:
        ElementError: a key is missing or holds something else than it should.
    """
    if not isinstance(image, dict):
        raise ElementError(
            f"images[{number}] must be an object, got {describe(image)}; write "
            '{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}',
            kind="image",
        )
    image_id = _integer(image, "id", f"images[{number}]", "image", -_INT64_MAX, _INT64_MAX)
    where = f"image {image_id}"
    file_name = image.get("file_name")
    if not isinstance(file_name, str) or not file_name:
        raise ElementError(
            f"{where}: `file_name` must be a name, got {describe(file_name)}; write the image's "
            "path below the image folder",
            kind="image",
            key="file_name",
        )
    try:
        refuse_escape(file_name)
    except ValueError as error:
        raise ElementError(f"{where}: {error}", kind="image", key="file_name") from None
    height = _integer(image, "height", where, "image", 1, _INT32_MAX)
    width = _integer(image, "width", where, "image", 1, _INT32_MAX)
    return image_id, file_name, height, width


def parse_category(category: Any, number: int) -> tuple[int, str]:
    """Check one element of `categories` and return its id and name.

    Raises:
        ElementError: it is no object with an integer id and a name.
    """
    element = category if isinstance(category, dict) else {}
    category_id = whole_number(element.get("id"))
    name = element.get("name")
    if category_id is None or abs(category_id) > _INT64_MAX or not isinstance(name, str):
        raise ElementError(
            f"categories[{number}] must have an integer id and a name, got {describe(category)}; "
            'write {"id": 1, "name": "cat"}',
            kind="category",
        )
    return category_id, name


def parse_object(element: Any, number: int) -> ObjectRow:
    """Check one element of `annotations`.

    Args:
        element: the decoded element.
        number: its position in the list, for the message.

    Raises:
        ElementError: a key that is used is missing or holds something else than it should.
    """
    where = f"annotations[{number}]"
    if not isinstance(element, dict):
        raise ElementError(
            f"{where} must be an object, got {describe(element)}; write "
            '{"id": 1, "image_id": 1, "category_id": 1, "bbox": [left, top, width, height]}',
            kind="annotation",
        )
    object_id, image_id, category_id = (
        _integer(element, key, where, "annotation", -_INT64_MAX, _INT64_MAX)
        for key in ("id", "image_id", "category_id")
    )
    where = f"annotation {object_id}"
    box = _box(element.get("bbox"), where)
    if element.get("ignore"):
        raise ElementError(
            f"{where}: `ignore` is not supported; leave the object out, or mark it with "
            "`iscrowd` 1",
            kind="annotation",
            key="ignore",
        )
    return ObjectRow(
        id=object_id,
        image_id=image_id,
        category_id=category_id,
        is_crowd=_crowd(element.get("iscrowd"), where),
        area=_area(element.get("area"), box, where),
        box=box,
    )


def _box(box: Any, where: str) -> tuple[float, ...]:
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_coordinate, box)):
        raise ElementError(
            f"{where}: `bbox` must be 4 numbers, got {_shorten(repr(box))}; write [left, top, "
            "width, height] in pixels",
            kind="box",
            key="bbox",
        )
    x, y, width, height = map(float, box)
    if width < 0 or height < 0:
        raise ElementError(
            f"{where}: {show_box((x, y, width, height))} has a negative size; write its left and "
            "top, and a positive width and height",
            kind="box",
            key="bbox",
        )
    return x, y, width, height


def show_box(box: tuple[float, ...]) -> str:
    """A box for a message."""
    x, y, w, h = box
    return f"box [{x:g}, {y:g}, {w:g}, {h:g}] (left, top, width, height)"


def _crowd(value: Any, where: str) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    if whole_number(value) not in (0, 1):
        raise ElementError(
            f"{where}: `iscrowd` must be 0 or 1, got {describe(value)}; write 0 for one object",
            kind="annotation",
            key="iscrowd",
        )
    return bool(value)


def _area(value: Any, box: tuple[float, ...], where: str) -> float:
    if value is None:
        return box[2] * box[3]
    if not is_finite(value) or value < 0:
        raise ElementError(
            f"{where}: `area` must be a number of square pixels, got {describe(value)}; leave it "
            "out, and that of the box is taken",
            kind="annotation",
            key="area",
        )
    return float(value)


def _integer(element: dict[str, Any], key: str, where: str, kind: str, low: int, high: int) -> int:
    given = element.get(key)
    value = whole_number(given)
    if value is None:
        number = _as_integer(given)
        remedy = _REMEDIES[key] if number is None else f"{number}, without quotes"
        raise ElementError(
            f"{where}: `{key}` must be an integer, got {describe(given)}; write {remedy}",
            kind=kind,
            key=key,
        )
    if not low <= value <= high:
        raise ElementError(
            f"{where}: `{key}` must lie in [{low}, {high}], got {_shorten(str(value))}; write "
            f"{_REMEDIES[key]}",
            kind=kind,
            key=key,
        )
    return value


def whole_number(value: Any) -> int | None:
    """The integer that a value is, a float without a fraction included; None for anything else."""
    # bool is an int to Python, but no id or size.
    if isinstance(value, bool):
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) else None


def _as_integer(value: Any) -> int | None:
    try:
        return int(value) if isinstance(value, str) else None
    except ValueError:
        return None


def is_finite(value: Any) -> bool:
    """Whether a decoded value is a number that a float can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is_coordinate(value: Any) -> bool:
    return is_finite(value) and abs(value) <= MAX_COORDINATE


def describe(value: Any) -> str:
    """Name a value for a message, shortened: it comes from a file of unknown origin."""
    if value is None:
        return "nothing"
    return f"{type(value).__name__} {_shorten(repr(value))}"


def _shorten(text: str) -> str:
    return text if len(text) <= 40 else text[:37] + "..."
