"""Canonical JSON: one text per value, strict reading, and differences named field by field."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from storage.errors import FormatError

ABSENT = "(absent)"
_MOST_SHOWN = 160


def dump(value: Any) -> bytes:
    """Encode a JSON value so that equal values give equal bytes.

    Keys are sorted, nothing is indented, and everything outside ASCII is escaped.

    Raises:
        ValueError: `value` holds something that JSON has no word for, NaN and infinity included.
    """
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not a JSON value: {error}") from error
    return text.encode("ascii")


def normalise(value: Any) -> Any:
    """Return `value` as it will be after a trip through JSON (tuples become lists)."""
    return json.loads(dump(value))


def load(raw: bytes, what: str) -> Any:
    """Decode JSON that somebody else wrote.

    Args:
        raw: the encoded text.
        what: what is being read, for the error message.

    Raises:
        FormatError: not UTF-8, not JSON, NaN or infinity, nested too deep, or a key that occurs
            twice in one object.
    """
    try:
        return json.loads(
            raw.decode("utf-8"), parse_constant=_refuse_constant, object_pairs_hook=_unique_keys
        )
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{what}: not valid JSON ({error})") from error


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a key occurs twice")
    return result


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One field in which two JSON values differ.

    Attributes:
        name: dotted path of the field, such as `teacher.config.INPUT.FORMAT`.
        stored: the value on the left, usually what a store holds; `ABSENT` if it has none.
        wanted: the value on the right, usually what a config asks for; `ABSENT` likewise.
    """

    name: str
    stored: Any
    wanted: Any

    def __str__(self) -> str:
        return self.worded("stored", "wanted")

    def worded(self, stored: str, wanted: str) -> str:
        """One line, with the reader's own words for the two sides."""
        return f"{self.name}: {stored} {_short(self.stored)}, {wanted} {_short(self.wanted)}"


def _short(value: Any) -> str:
    text = value if value == ABSENT else json.dumps(value, sort_keys=True)
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."


def differences(stored: Any, wanted: Any) -> list[Difference]:
    """Name every field in which two JSON values differ, in the order of the names."""
    return list(_differences(stored, wanted, ""))


def _differences(stored: Any, wanted: Any, name: str) -> Iterator[Difference]:
    if isinstance(stored, Mapping) and isinstance(wanted, Mapping):
        for key in sorted(stored.keys() | wanted.keys()):
            path = f"{name}.{key}" if name else str(key)
            yield from _differences(stored.get(key, ABSENT), wanted.get(key, ABSENT), path)
    elif isinstance(stored, list) and isinstance(wanted, list) and len(stored) == len(wanted):
        for place, both in enumerate(zip(stored, wanted, strict=True)):
            yield from _differences(*both, f"{name}[{place}]")
    elif stored != wanted or dump(stored) != dump(wanted):  # to Python, true is 1, and 1.0 is 1
        yield Difference(name=name, stored=stored, wanted=wanted)
