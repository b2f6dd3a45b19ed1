"""How messages say what may be long: the first few of it, and how many more there are."""

from __future__ import annotations

from collections.abc import Iterable


def listed(items: Iterable[str], *, shown: int = 8, between: str = ", ") -> str:
    """The first `shown` of some items in one line, and the number of the others."""
    known = list(items)
    rest = [f"and {len(known) - shown} more"] if len(known) > shown else []
    return between.join([*known[:shown], *rest])
