"""What a value may be: small rules that say what they expect and whether a value is it.

They are the parts of the two tables of limits, `configs.nodes` for our keys and
`configs.stock_limits` for detectron2's. Only the standard library is needed here.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from typing import Any, Protocol

from storage.urls import cut_short

# Whole numbers that no table gives a tighter limit: what 32 bits hold, as loops and files count.
MAX_WHOLE = 2**31 - 1
# What a key of a config may hold, by yacs's rules.
LEAF_TYPES = (tuple, list, str, int, float, bool, type(None))


class Rule(Protocol):
    """What a value is checked by."""

    @property
    def expected(self) -> str:
        """What is allowed, to follow the word `expected`."""
        ...

    def accepts(self, value: Any) -> bool:
        """Whether the value is allowed."""
        ...


@dataclass(frozen=True)
class Whole:
    """An integer within limits, both allowed."""

    at_least: int
    at_most: int = MAX_WHOLE

    @property
    def expected(self) -> str:
        """See `Rule`."""
        return f"an integer of at least {self.at_least} and at most {self.at_most}"

    def accepts(self, value: Any) -> bool:
        """See `Rule`. bool is an int to Python, but `NUM: true` is a mistake."""
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return is_whole and self.at_least <= value <= self.at_most


@dataclass(frozen=True, kw_only=True)
class Number:
    """A finite number within limits; `above` and `below` are themselves not allowed."""

    at_least: float = 0.0
    at_most: float | None = None
    above: float | None = None
    below: float | None = None

    @property
    def expected(self) -> str:
        """See `Rule`."""
        low = f"at least {self.at_least:g}" if self.above is None else f"above {self.above:g}"
        high = "" if self.at_most is None else f" and at most {self.at_most:g}"
        high = high if self.below is None else f" and below {self.below:g}"
        return f"a number {low}{high}"

    def accepts(self, value: Any) -> bool:
        """See `Rule`. Whole numbers stand for floats."""
        if not isinstance(value, int | float) or isinstance(value, bool):
            return False
        # Not math.isfinite, which raises at whole numbers beyond the floats.
        if not abs(value) <= sys.float_info.max:
            return False
        high_enough = value >= self.at_least if self.above is None else value > self.above
        low_enough = self.at_most is None or value <= self.at_most
        return high_enough and low_enough and (self.below is None or value < self.below)


@dataclass(frozen=True)
class Choice:
    """One of some values; 0, 0.0 and False are three."""

    allowed: tuple[Any, ...]

    @property
    def expected(self) -> str:
        """See `Rule`."""
        return "one of " + ", ".join(str(one) if str(one) else "''" for one in self.allowed)

    def accepts(self, value: Any) -> bool:
        """See `Rule`."""
        return any(type(value) is type(one) and value == one for one in self.allowed)


@dataclass(frozen=True)
class Text:
    """Text, which may be empty unless `needed`; with a pattern, text that it describes whole."""

    needed: bool = False
    pattern: str = ""
    described: str = ""

    @property
    def expected(self) -> str:
        """See `Rule`."""
        return self.described or ("text that is not empty" if self.needed else "text")

    def accepts(self, value: Any) -> bool:
        """See `Rule`."""
        if not isinstance(value, str) or (self.needed and not value):
            return False
        return not self.pattern or re.fullmatch(self.pattern, value) is not None


@dataclass(frozen=True)
class Place:
    """A path, or a URL of one of some schemes; may be empty."""

    schemes: tuple[str, ...] = ()

    @property
    def expected(self) -> str:
        """See `Rule`."""
        urls = f", or a URL of {', '.join(f'{one}://' for one in self.schemes)}"
        return "a local path" + (urls if self.schemes else "")

    def accepts(self, value: Any) -> bool:
        """See `Rule`."""
        if not isinstance(value, str):
            return False
        if "://" in value:
            return value.partition("://")[0] in self.schemes
        return cut_short(value, self.schemes) is None

    @staticmethod
    def holds_credentials(value: str) -> bool:
        """Whether a URL names a user, whose password would end up in logs and saved configs."""
        # Wherever a URL begins: a name that is none, as with a space before it, is repeated too.
        return re.search(r":/+[^/?#]*@", value) is not None


@dataclass(frozen=True)
class Flag:
    """True or False."""

    expected: str = "True or False"

    def accepts(self, value: Any) -> bool:
        """See `Rule`."""
        return isinstance(value, bool)


@dataclass(frozen=True, kw_only=True)
class Several:
    """A tuple or list of values that each follow one rule."""

    item: Rule
    at_least: int = 1
    at_most: int | None = None

    @property
    def expected(self) -> str:
        """See `Rule`."""
        count = f"{self.at_least}" if self.at_least == self.at_most else f"{self.at_least} or more"
        return f"a tuple of {count} values, each {self.item.expected}"

    def accepts(self, value: Any) -> bool:
        """See `Rule`."""
        if not isinstance(value, tuple | list) or len(value) < self.at_least:
            return False
        fits = self.at_most is None or len(value) <= self.at_most
        return fits and all(self.item.accepts(one) for one in value)


@dataclass(frozen=True)
class Either:
    """What one of two rules accepts."""

    first: Rule
    second: Rule

    @property
    def expected(self) -> str:
        """See `Rule`."""
        return f"{self.first.expected}, or {self.second.expected}"

    def accepts(self, value: Any) -> bool:
        """See `Rule`."""
        return self.first.accepts(value) or self.second.accepts(value)


@dataclass(frozen=True)
class Nothing:
    """None."""

    expected: str = "None"

    def accepts(self, value: Any) -> bool:
        """See `Rule`."""
        return value is None
