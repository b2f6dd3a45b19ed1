"""The teacher cache: its format, codecs, writer, reader and integrity checks.

Names are imported on first use: `python -m storage` and the readers need no PyTorch, only the
presets do.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage.commands import read_logs
    from storage.comparison import Comparison, compare
    from storage.errors import (
        CacheError,
        ClaimLostError,
        CorruptChunkError,
        ForkedProcessError,
        FormatError,
        IdentityError,
        MissingShardError,
        StoreAccessError,
        StoreFullError,
        VersionError,
    )
    from storage.index import Index, assign_slots, build_index
    from storage.manifest import Manifest
    from storage.plan import plan_to_json
    from storage.presets import get_preset, preset_names
    from storage.presets.base import DecodedOutputs, Preset, RawOutputs
    from storage.reader import CacheReader
    from storage.repairs import Repair, repair
    from storage.report import Problem, Report
    from storage.schema import Field, Geometry, ShardId
    from storage.shrinking import drop_views
    from storage.verification import verify
    from storage.writer import CacheWriter

_MODULES = {
    "storage.commands": ("read_logs",),
    "storage.comparison": ("Comparison", "compare"),
    "storage.errors": (
        "CacheError", "ClaimLostError", "CorruptChunkError", "ForkedProcessError", "FormatError",
        "IdentityError", "MissingShardError", "StoreAccessError", "StoreFullError", "VersionError",
    ),
    "storage.index": ("Index", "assign_slots", "build_index"),
    "storage.manifest": ("Manifest",),
    "storage.plan": ("plan_to_json",),
    "storage.presets": ("get_preset", "preset_names"),
    "storage.presets.base": ("DecodedOutputs", "Preset", "RawOutputs"),
    "storage.reader": ("CacheReader",),
    "storage.repairs": ("Repair", "repair"),
    "storage.report": ("Problem", "Report"),
    "storage.schema": ("Field", "Geometry", "ShardId"),
    "storage.shrinking": ("drop_views",),
    "storage.verification": ("verify",),
    "storage.writer": ("CacheWriter",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "CacheError", "CacheReader", "CacheWriter", "ClaimLostError", "Comparison",
    "CorruptChunkError", "DecodedOutputs", "Field", "ForkedProcessError", "FormatError",
    "Geometry", "IdentityError", "Index", "Manifest", "MissingShardError", "Preset", "Problem",
    "RawOutputs", "Repair", "Report", "ShardId", "StoreAccessError", "StoreFullError",
    "VersionError", "assign_slots", "build_index", "compare", "drop_views", "get_preset",
    "plan_to_json", "preset_names", "read_logs", "repair", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
