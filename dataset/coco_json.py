"""Reading COCO annotation files: element by element, so that what is not kept costs no memory.

Writing one anew does the same.

`json.load` of COCO's train2017 builds several gigabytes of polygons that nobody here looks at.
This walks the top-level object and decodes one array element at a time, at the same speed.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Generator, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from storage.progress import Progress
from storage.whole import replaced, write_whole

# Elements that are handed over together. More of them would fill the processor's caches with
# polygons.
CHUNK = 128
_SPACE = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()

# Telling progress of every element would take as long as decoding a small one.
_CHARACTERS_A_STEP = 1 << 20


def iterate_sections(path: str | os.PathLike[str]) -> Iterator[tuple[str, Any, bool]]:
    """Yield what a COCO file holds, in the order of the file.

    Yields:
        `(section, elements, True)` for every few elements of a top-level array, at least once
        for each array, and `(section, value, False)` for a top-level value that is no array.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON, or not an object, or names a section twice.
    """
    name = os.fspath(path)
    text = _read_text(name)
    try:
        with Progress(f"reading {os.path.basename(name)}", total=len(text), unit="B") as progress:
            yield from _walk_object(text, progress)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{name}: not valid JSON at line {error.lineno}, column {error.colno} "
            f"({error.msg}); the file may be cut off"
        ) from error
    except RecursionError:
        raise ValueError(f"{name}: not COCO annotations, nested too deeply") from None
    # Ours, and Python's for an integer of thousands of digits.
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def of_images(section: str, element: Any, file_names: Mapping[int, str]) -> Any:
    """An element of a COCO file as one of some of its images has it; None if it has not.

    Args:
        section: that the element is of.
        element: of the file.
        file_names: image id to the `file_name` to write, of the images that are kept.
    """
    if section == "images":
        name = file_names.get(element["id"])
        return None if name is None else {**element, "file_name": name}
    if section == "annotations" and element["image_id"] not in file_names:
        return None
    return element


def write_reduced(source: Path, target: Path, reduced: Callable[[str, Any], Any]) -> None:
    """Write some of a COCO file as another; what is no array is taken as it is.

    Args:
        source: the file.
        target: the file to write, in a folder that exists.
        reduced: gives, of a section and an element of it, the element to write, or None.

    Raises:
        OSError, ValueError: as `iterate_sections`; or the target cannot be written.
    """
    sections = groupby(iterate_sections(source), key=lambda one: (one[0], one[2]))
    with replaced(target) as partial, open(partial, "w", encoding="utf-8") as file:
        for number, ((section, is_array), parts) in enumerate(sections):
            file.write(f"{',' if number else '{'}\n{json.dumps(section)}: ")
            if not is_array:
                file.writelines(json.dumps(value) for _, value, _ in parts)
                continue
            elements = (reduced(section, one) for _, many, _ in parts for one in many)
            texts = (json.dumps(one) for one in elements if one is not None)
            file.write("[")
            file.writelines(f"{',' if place else ''}\n{text}" for place, text in enumerate(texts))
            file.write("]")
        file.write("}\n")


def write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write a file that is either the old or the new one, never half of it."""
    write_whole(path, json.dumps(value, indent=indent) + "\n")


def _read_text(name: str) -> str:
    try:
        # Bytes, since text mode would look for line ends, in a second for COCO's annotations.
        with open(name, "rb") as file:
            # utf-8-sig: some tools on Windows write a byte order mark, which json refuses.
            return file.read().decode("utf-8-sig")
    except FileNotFoundError:
        raise FileNotFoundError(f"{name}: there is no such annotation file") from None
    except IsADirectoryError:
        raise ValueError(f"{name}: expected an annotation file, found a folder") from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8 text ({error}); save it as UTF-8") from None


def _walk_object(text: str, progress: Progress) -> Iterator[tuple[str, Any, bool]]:
    position = _skip_space(text, 0)
    if text[position : position + 1] != "{":
        # Decoded only to tell broken JSON from JSON of another kind.
        value, _ = _DECODER.raw_decode(text, position)
        raise ValueError(
            "COCO annotations are a JSON object with `images`, `annotations` and `categories`, "
            f"found a {type(value).__name__}"
        )
    seen: set[str] = set()
    position = _skip_space(text, position + 1)
    while text[position : position + 1] != "}":
        section, position = _read_key(text, position)
        if section in seen:
            raise ValueError(f"holds the section `{section}` twice")
        seen.add(section)
        if text[position : position + 1] == "[":
            position = yield from _walk_array(text, position, section, progress)
        else:
            value, position = _DECODER.raw_decode(text, position)
            yield section, value, False
        position = _after_value(text, position, "}")
    position = _skip_space(text, position + 1)
    if position != len(text):
        raise json.JSONDecodeError("Extra data", text, position)


def _walk_array(
    text: str, position: int, section: str, progress: Progress
) -> Generator[tuple[str, Any, bool], None, int]:
    """Yield the elements of the array that opens at `position`; return where it ends."""
    told = position
    position = _skip_space(text, position + 1)
    elements: list[Any] = []
    while text[position : position + 1] != "]":
        element, position = _DECODER.raw_decode(text, position)
        elements.append(element)
        if len(elements) == CHUNK:
            yield section, elements, True
            elements = []
        if position - told >= _CHARACTERS_A_STEP:
            progress.update(position - told)
            told = position
        # The usual separator first: this runs once an element.
        if text.startswith(", {", position):
            position += 2
        else:
            position = _after_value(text, position, "]")
    yield section, elements, True
    return position + 1


def _read_key(text: str, position: int) -> tuple[str, int]:
    """Read `"key":` and return the key and where its value starts."""
    if text[position : position + 1] != '"':
        raise json.JSONDecodeError("Expecting property name", text, position)
    key, position = _DECODER.raw_decode(text, position)
    position = _skip_space(text, position)
    if text[position : position + 1] != ":":
        raise json.JSONDecodeError("Expecting ':' delimiter", text, position)
    return key, _skip_space(text, position + 1)


def _after_value(text: str, position: int, closing: str) -> int:
    """Step over a comma; what follows it must not be the closing bracket."""
    position = _skip_space(text, position)
    if text[position : position + 1] == ",":
        position = _skip_space(text, position + 1)
        if text[position : position + 1] == closing:
            raise json.JSONDecodeError("Illegal trailing comma", text, position)
        return position
    if text[position : position + 1] != closing:
        raise json.JSONDecodeError("Expecting ',' delimiter", text, position)
    return position


def _skip_space(text: str, position: int) -> int:
    match = _SPACE.match(text, position)
    assert match is not None  # the pattern matches the empty string too
    return match.end()
