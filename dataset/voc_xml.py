"""One annotation file of Pascal VOC: the objects of an image.

Of an object `name` and `bndbox` are needed, `difficult` is 0 where it is missing, and nothing else
is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dataset.elements import MAX_COORDINATE
from dataset.safe_xml import XmlElement, read_xml

_CORNERS = ("xmin", "ymin", "xmax", "ymax")


@dataclass(frozen=True, kw_only=True)
class VocObject:
    """One object.

    Attributes:
        name: of its class.
        box_xywh_abs: left, top, width and height, pixels of the image.
        is_difficult: neither found nor missed, by VOC's rule of evaluation.
        is_official: whether it has what every object of VOC2007 has, and evaluation by VOC's rule
            reads: a name without spaces around it, pose, truncated, difficult, and corners in whole
            pixels.
        place: file and line, for messages.
    """

    name: str
    box_xywh_abs: tuple[float, float, float, float]
    is_difficult: bool
    is_official: bool
    place: str


@dataclass(frozen=True, kw_only=True)
class VocAnnotation:
    """What is said of one image.

    Attributes:
        file_name: of the image, without folders; "" if the file lacks it.
        size: (height, width); None where the file lacks it, or has zeros.
        objects: in the order of the file.
        place: file and line of the size, or of the whole.
        is_utf8: whether the file is; evaluation by VOC's rule reads no other.
    """

    file_name: str
    size: tuple[int, int] | None
    objects: tuple[VocObject, ...]
    place: str
    is_utf8: bool


def read_voc(path: Path) -> VocAnnotation:
    """Read an annotation file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not XML, or an element lacks what is needed; names file and line.
    """
    root = read_xml(path)
    if root.tag != "annotation":
        raise ValueError(
            f"{root.place}: expected <annotation>, got <{root.tag}>; write VOC's annotations"
        )
    sizes = _children(root, "size")
    size = next(sizes, None)
    return VocAnnotation(
        file_name=_text(root, "filename").replace("\\", "/").rpartition("/")[2],
        size=None if size is None else _size(size),
        objects=tuple(map(_object, _children(root, "object"))),
        place=root.place if size is None else size.place,
        is_utf8=_is_utf8(path),
    )


def _is_utf8(path: Path) -> bool:
    try:
        path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _children(element: XmlElement, tag: str) -> Iterator[XmlElement]:
    return (one for one in element if isinstance(one, XmlElement) and one.tag == tag)


def _text(element: XmlElement, tag: str) -> str:
    return (element.findtext(tag) or "").strip()


def _size(element: XmlElement) -> tuple[int, int] | None:
    height, width = (_number(element, tag) for tag in ("height", "width"))
    return (int(height), int(width)) if height > 0 and width > 0 else None


def _object(element: XmlElement) -> VocObject:
    name = _text(element, "name")
    if not name:
        raise ValueError(
            f"{element.place}: expected <name> in <object>, got none; write the object's class"
        )
    difficult = _text(element, "difficult") or "0"
    if difficult not in ("0", "1"):
        raise ValueError(
            f"{element.place}: expected 0 or 1 in <difficult>, got {difficult[:40]!r}; write one"
        )
    return VocObject(
        name=name,
        box_xywh_abs=_box(element),
        is_difficult=difficult == "1",
        is_official=_is_official(element),
        place=element.place,
    )


def _box(element: XmlElement) -> tuple[float, float, float, float]:
    """The box of an object: VOC counts pixels from 1, and the last one is a part of the box."""
    box = next(_children(element, "bndbox"), None)
    if box is None:
        raise ValueError(
            f"{element.place}: expected <bndbox> in <object>, got none; write the object's box"
        )
    left, top, right, bottom = (_number(box, tag) for tag in _CORNERS)
    if right < left or bottom < top:
        raise ValueError(
            f"{box.place}: expected xmin <= xmax and ymin <= ymax, got "
            f"{left:g}, {top:g}, {right:g}, {bottom:g}; write left, top, right and bottom"
        )
    return left - 1, top - 1, right - left + 1, bottom - top + 1


def _is_official(element: XmlElement) -> bool:
    whole = [_text(element, tag) for tag in ("truncated", "difficult")]
    whole += [_text(box, tag) for box in _children(element, "bndbox") for tag in _CORNERS]
    # detectron2 compares the name as it is written.
    is_bare = element.findtext("name") == _text(element, "name")
    return is_bare and bool(_text(element, "pose")) and all(map(str.isdecimal, whole))


def _number(element: XmlElement, tag: str) -> float:
    text = _text(element, tag)
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    # No comparison holds for NaN.
    if not abs(value) < MAX_COORDINATE:
        raise ValueError(
            f"{element.place}: expected a number in <{tag}>, got {text[:40]!r}; write pixels"
        )
    return value
