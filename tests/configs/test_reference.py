"""The tables of config keys: each key once, with what the code itself says of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from detectron2.config import get_cfg

from configs import reference
from configs.loader import default_config
from configs.nodes import NODES, OWN_NODES
from configs.stock_keys import REFUSALS
from configs.stock_limits import LIMITS, TOGETHER, leaves


def rows(table: Callable[[], Iterator[str]]) -> list[list[str]]:
    """The cells of every row, those of headers left out."""
    lines = [line for line in table() if line.startswith("| `")]
    return [re.split(r" (?<!\\)\| ", line[2:-2]) for line in lines]


def named(cells: list[str]) -> list[str]:
    return re.findall(r"`([A-Z_0-9.]+)`", cells[0])


def test_every_key_of_a_node_has_default_limit_and_meaning() -> None:
    found = [(*named(cells), *cells[1:]) for cells in rows(reference.node_tables)]
    ours = [
        (one.name.upper(), f"`{one.default!r}`")
        for name in OWN_NODES
        for one in fields(NODES[name])
    ]
    assert [one[:2] for one in found] == ours
    assert all(all(cells) for cells in found)


def test_the_page_begins_with_a_link_to_every_node() -> None:
    page = (Path(__file__).parents[2] / "docs" / "CONFIG.md").read_text()
    assert [name for name in OWN_NODES if f"[`{name}`](#node-{name.lower()})" not in page] == []


def test_limit_and_meaning_of_a_key_are_those_of_its_node() -> None:
    lines = list(reference.node_tables())
    limit, meaning = "an integer of at least 1", "GIs of one image after NMS (the paper's K)."
    assert f"| `TOP_K` | `10` | {limit} | {meaning} |" in lines
    (location,) = [line for line in lines if line.startswith("| `LOCATION`")]
    assert "or a URL of s3://, gs://, az:// | Folder" in location


def test_a_key_without_a_comment_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "_comments", lambda text: {})
    with pytest.raises(ValueError, match="ViewsConfig: seed: expected a comment"):
        list(reference.node_tables())


def test_every_key_that_detectron2_lacks_is_listed() -> None:
    stock = {key for key, _ in leaves(get_cfg())}
    ours = {key for key, _ in leaves(default_config()) if key.split(".")[0] not in OWN_NODES}
    assert {key for cells in rows(reference.added_keys) for key in named(cells)} == ours - stock


def test_every_limit_of_detectron2_s_keys_is_listed() -> None:
    listed = [key for cells in rows(reference.limited_keys) for key in named(cells)]
    added = {key for cells in rows(reference.added_keys) for key in named(cells)}
    assert sorted(listed) == sorted([*(LIMITS.keys() - added), *(key for key, _, _ in TOGETHER)])


def test_refusals_name_keys_in_place_of_values() -> None:
    found: Any = {tuple(named(cells)): cells[1:] for cells in rows(reference.refused_keys)}
    assert found["INPUT.MIN_SIZE_TRAIN",] == [
        "the stages", "views have the sizes of VIEWS.SCALES; set both alike"
    ]  # fmt: skip
    assert not any("{" in text for cells in found.values() for text in cells)
    assert {key for keys in found for key in keys} < {one.key for one in REFUSALS}
