"""How messages say what may be long, whose a class is, and what an error of any process says."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from configs.imports import is_from_elsewhere, users_place


def listed(
    items: Iterable[str], *, shown: int = 8, total: int | None = None, between: str = ", "
) -> str:
    """The first `shown` of some items in one line, and the number of the others.

    `total` is how many there are, where not all of them are handed over.
    """
    known = list(items)
    left = (total or len(known)) - shown
    return between.join([*known[:shown], *([f"and {left} more"] if left > 0 else [])])


def full_name(of: Any) -> str:
    """The name of a class or function with its module's, or that of an object's class."""
    return f"{of.__module__}.{getattr(of, '__qualname__', type(of).__name__)}"


def one_line(error: BaseException) -> str:
    """The message of an error; of one from another process, without its traceback.

    One that comes from code of the user's ends with its file and line.
    """
    text = str(error).rstrip()
    if is_from_elsewhere(error):
        text = _told_elsewhere(text)
    try:
        place = users_place(error)
    except MemoryError:  # looking for it takes some, too
        place = ""
    return text if not place or place in text else f"{text} ({place})"


def _told_elsewhere(text: str) -> str:
    """What the error said at the end of a traceback, which may have several lines."""
    lines = text.rpartition("Traceback (most recent call last):")[2].splitlines()[1:]
    calls = next((n for n, line in enumerate(lines) if not line.startswith(" ")), len(lines))
    said = " ".join(" ".join(lines[calls:]).split())
    return said.partition(": ")[2] or said
