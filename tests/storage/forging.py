"""What hypothesis puts into the JSON of a store, and how it gets there."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=4)
)


NAMES = st.text(max_size=3)


JSON = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(NAMES, SCALARS, max_size=3)


HOSTILE: st.SearchStrategy[Any] = st.sampled_from(
    [
        -1, 0, 2**31, 2**63, 2**64, 10**4000, 1e308, True, None, "", "..", "../../etc/passwd",
        "/etc/passwd", "a/../../b", "0800x1344/..", [], {}, [[]], "x" * 10_000, "\x00", "\ud800",
    ]
)  # fmt: skip


FUZZ = settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))


def paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every value inside a JSON value."""
    inner = value.items() if isinstance(value, dict) else enumerate(value)
    found = []
    for key, one in inner:
        found.append((*path, key))
        if isinstance(one, dict | list):
            found += paths(one, (*path, key))
    return found


def replaced(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    """Return a copy of a JSON value with one value inside it replaced."""
    result = copy.deepcopy(value)
    place = result
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = new
    return result
