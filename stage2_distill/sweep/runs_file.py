"""The runs file: named rows of config overrides, in YAML.

common: {SOLVER.MAX_ITER: 90000}    # of every row; may be left out
rows:
  ground truth: {TEACHER.SOURCE: none}
  gid: {}
  few GIs: {GID: {TOP_K: 5}}        # nodes of keys do as well as dots
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any

from configs.safe_yaml import ConfigMapping, read_yaml
from configs.stock_limits import leaves

_PARTS = ("rows", "common")
SAME_IMAGES = (
    "all rows are evaluated on the same images; give it for all of them, behind the options of the "
    "command"
)
# Overrides that would make the rows another thing than rows of one table, and who gives them.
RESERVED = {
    "SEED": "--seeds gives it",
    "OUTPUT_DIR": "--output gives it",
    "DATASETS.TEST": SAME_IMAGES,
    "MODEL.DEVICE": "all rows are trained on devices of one kind; give it for all of them, behind "
    "the options of the command",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of the table to come.

    Attributes:
        name: as the file has it.
        place: file and line.
        overrides: full keys with their values, those of `common` first.
    """

    name: str
    place: str
    overrides: tuple[tuple[str, Any], ...]

    @property
    def title(self) -> str:
        """To begin an error with."""
        return f"{self.place}: row {self.name!r}: "


def read_rows(path: str) -> list[Row]:
    """Read a runs file; the first row is the one that the others are compared with.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no runs file; one line with file, line and row.
    """
    content = read_yaml(path)
    for name in content:
        if name not in _PARTS:
            near = difflib.get_close_matches(name, _PARTS, n=1)
            hint = f", did you mean {near[0]}?" if near else "."
            raise ValueError(
                f"{path}:{content.lines[name]}: unknown key {name}{hint} Expected `rows`, and "
                "`common` for what all of them share"
            )
    rows = content.get("rows")
    if not isinstance(rows, ConfigMapping) or not rows:
        raise ValueError(f"{path}: expected `rows:` with at least one named row, got {rows!r}")
    line = content.lines.get("common", 1)
    common = _overrides(content.get("common", ConfigMapping()), f"{path}:{line}: common: ")
    return [_row(name, value, f"{path}:{rows.lines[name]}", common) for name, value in rows.items()]


def _row(name: str, value: Any, place: str, common: dict[str, Any]) -> Row:
    own = _overrides(value, f"{place}: row {name!r}: ")
    return Row(name=name, place=place, overrides=tuple({**common, **own}.items()))


def _overrides(value: Any, title: str) -> dict[str, Any]:
    if not isinstance(value, ConfigMapping):
        raise ValueError(
            f"{title}expected config keys with their values, such as {{GID.TOP_K: 5}}, or {{}} for "
            f"none, got {value!r}"
        )
    found: dict[str, Any] = {}
    for key, one in leaves(value):
        if key in found:
            raise ValueError(f"{title}{key} is set twice")
        if key in RESERVED:
            raise ValueError(f"{title}{key} cannot be set here: {RESERVED[key]}")
        found[key] = one
    return found
