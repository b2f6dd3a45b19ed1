"""The project's own config nodes: frozen dataclasses that check themselves, one file each.

They are the single source of their keys, defaults and limits: the loader derives the yacs defaults
from them. A field `shard_records` of the node `CACHE` is the YAML key `CACHE.SHARD_RECORDS`. Only
the standard library is needed here, so that every package can depend on it at no cost.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from .base import FieldChecks
from .cache import CacheConfig
from .dataset import DatasetConfig
from .gid import GidConfig
from .teacher import TeacherConfig
from .views import ViewsConfig

__all__ = [
    "NODES",
    "CacheConfig",
    "DatasetConfig",
    "FieldChecks",
    "GidConfig",
    "Settings",
    "TeacherConfig",
    "ViewsConfig",
]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Every node of our own, validated."""

    views: ViewsConfig = field(default_factory=ViewsConfig)
    teacher: TeacherConfig = field(default_factory=TeacherConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)
    gid: GidConfig = field(default_factory=GidConfig)
    dataset: DatasetConfig = field(default_factory=DatasetConfig)


# Node name to its dataclass. `Settings` has one field of each, by the node's lower-case name.
NODES: dict[str, type[Any]] = {
    one.node: one for one in (ViewsConfig, TeacherConfig, CacheConfig, GidConfig, DatasetConfig)
}
