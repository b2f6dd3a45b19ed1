"""Config nodes beside detectron2's: frozen dataclasses that check themselves, one file each.

They are the single source of their keys, defaults and limits: the loader derives the yacs defaults
from them. A field `shard_records` of the node `CACHE` is the YAML key `CACHE.SHARD_RECORDS`. Only
the standard library is needed here, so that every package can depend on it at no cost. Modules of
the user's may register nodes of their own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, TypeVar

from configs.rules import LEAF_TYPES
from configs.wording import full_name

from .base import FieldChecks
from .boxes import BoxesConfig
from .cache import CacheConfig
from .cwd import CwdConfig
from .dataset import DatasetConfig
from .distill import DistillConfig
from .fgd import FgdConfig
from .frs import FrsConfig
from .gid import GidConfig
from .mgd import MgdConfig
from .mimic import MimicConfig
from .pkd import PkdConfig
from .pseudo import PseudoConfig
from .student_views import StudentViewsConfig
from .teacher import TeacherConfig
from .views import ViewsConfig

__all__ = [
    "FIELD_NODES",
    "NODES",
    "OWN_NODES",
    "BoxesConfig",
    "CacheConfig",
    "CwdConfig",
    "DatasetConfig",
    "DistillConfig",
    "FgdConfig",
    "FieldChecks",
    "FrsConfig",
    "GidConfig",
    "MgdConfig",
    "MimicConfig",
    "PkdConfig",
    "PseudoConfig",
    "Settings",
    "StudentViewsConfig",
    "TeacherConfig",
    "ViewsConfig",
    "register_node",
    "users_nodes",
]

NodeClass = TypeVar("NodeClass", bound=type)


_OF_ALL_RUNS: tuple[type[Any], ...] = (
    ViewsConfig, StudentViewsConfig, TeacherConfig, CacheConfig, DistillConfig, DatasetConfig,
)  # fmt: skip
_OF_METHODS: tuple[type[Any], ...] = (
    GidConfig, PkdConfig, FrsConfig, CwdConfig, MgdConfig, FgdConfig, MimicConfig, BoxesConfig,
    PseudoConfig,
)  # fmt: skip
# Those that `Settings` has a field of, by the node's lower-case name.
FIELD_NODES = tuple(one.node for one in _OF_ALL_RUNS)
# Node name to its dataclass.
NODES: dict[str, type[Any]] = {one.node: one for one in (*_OF_ALL_RUNS, *_OF_METHODS)}
OWN_NODES = tuple(NODES)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every node, validated: what all runs have by attribute, all by name, as `settings["GID"]`."""

    views: ViewsConfig = field(default_factory=ViewsConfig)
    student_views: StudentViewsConfig = field(default_factory=StudentViewsConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)
    # Those of the methods, and what modules of the user's registered.
    others: Mapping[str, Any] = field(
        default_factory=lambda: {one.node: one() for one in _OF_METHODS}
    )

    def __getitem__(self, name: str) -> Any:
        """The dataclass of a node, ours or the user's; KeyError if there is none."""
        ours = {one: getattr(self, one.lower()) for one in FIELD_NODES}
        return {**ours, **self.others}[name]


def register_node(node: NodeClass) -> NodeClass:
    """Add a config node of the user's; a class decorator, above `@dataclass`.

    Args:
        node: a dataclass whose class variable `node` is the name, in capitals, and whose fields all
            have defaults. It checks its values in `__post_init__`, see `FieldChecks`.

    Raises:
        ValueError: it is no such class, or the name is taken; one line that names both.
    """
    title, name = full_name(node), getattr(node, "node", None)
    if not is_dataclass(node):
        raise ValueError(f"{title}: expected a dataclass; put @register_node above @dataclass")
    if not isinstance(name, str) or not re.fullmatch(r"[A-Z][A-Z0-9_]*", name):
        raise ValueError(f"{title}.node: expected the node's name in capitals, got {name!r}")
    owner = full_name(NODES[name]) if name in NODES else _stock_owner(name)
    if owner:
        raise ValueError(f"{title}: the name {name} is taken by {owner}; choose another one")
    for item in fields(node):
        if type(item.default) not in LEAF_TYPES:
            allowed = ", ".join(one.__name__ for one in LEAF_TYPES)
            raise ValueError(f"{title}.{item.name}: expected a default that is one of {allowed}")
    NODES[name] = node
    return node


def users_nodes(config: Mapping[str, Any]) -> dict[str, Any]:
    """The nodes of a config that modules of the user's registered: a model may be made of them.

    Args:
        config: nodes of keys, as a `CfgNode` is.
    """
    return {name: config[name] for name in NODES if name in config and name not in OWN_NODES}


def _stock_owner(name: str) -> str:
    """What else has a key of this name at the top of a config; "" if nothing has."""
    # Not above: our own nodes are needed where detectron2 is not.
    from detectron2.config import get_cfg

    if name == "IMPORTS":
        return "configs.loader"
    return "detectron2.config.get_cfg" if name in get_cfg() else ""
