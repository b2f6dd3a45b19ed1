"""XML read safely, with line numbers for messages.

A document type is refused, and with it every entity that a file could declare: none is expanded,
and nothing outside of the file is read.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat


class XmlElement(Element):
    """An element that knows where it begins.

    Attributes:
        place: file and line, for messages.
    """

    place = ""


def read_xml(path: Path) -> XmlElement:
    """Read a file and return its root.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not XML, or declares a document type; names file and line.
    """
    parser = expat.ParserCreate()
    builder = TreeBuilder(element_factory=XmlElement)

    def start(tag: str, attributes: dict[str, str]) -> None:
        element: Any = builder.start(tag, attributes)
        element.place = f"{path}:{parser.CurrentLineNumber}"

    def refuse(*_: object) -> None:
        raise _DoctypeError

    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(path.read_bytes(), True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: there is no such file") from None
    except _DoctypeError:
        raise ValueError(
            f"{path}:{parser.CurrentLineNumber}: expected no document type, got <!DOCTYPE>, which "
            "may declare entities; remove it"
        ) from None
    # An unknown encoding is a LookupError, one of several bytes a character a ValueError.
    except (expat.ExpatError, LookupError, ValueError) as error:
        found = str(error).partition(":")[0]
        raise ValueError(
            f"{path}:{parser.CurrentLineNumber}: expected XML, got an error ({found}); mend the "
            "file, or write it anew as UTF-8"
        ) from None
    return cast(XmlElement, builder.close())


class _DoctypeError(Exception):
    """A file declares a document type."""
