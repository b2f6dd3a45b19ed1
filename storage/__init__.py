"""The teacher cache: its format, codecs, writer, reader and integrity checks.

Names are imported on first use: `python -m storage` and the readers need no PyTorch, only the
presets do.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage.codecs.base import Codec
    from storage.codecs.presets import Preset, get_preset, register_codec, register_preset
    from storage.codecs.record import RecordCodec
    from storage.commands import read_logs
    from storage.comparison import Comparison, compare
    from storage.copying import Copied, copy_cache
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
    from storage.reader import CacheReader
    from storage.repairs import Repair, repair
    from storage.report import Problem, Report
    from storage.schema import Array, Field, Geometry, ShardId
    from storage.shrinking import drop_views
    from storage.signals import Signal
    from storage.verification import verify
    from storage.writer import CacheWriter

_MODULES = {
    "storage.codecs.base": ("Codec",),
    "storage.codecs.presets": ("Preset", "get_preset", "register_codec", "register_preset"),
    "storage.codecs.record": ("RecordCodec",),
    "storage.commands": ("read_logs",),
    "storage.comparison": ("Comparison", "compare"),
    "storage.copying": ("Copied", "copy_cache"),
    "storage.errors": (
        "CacheError", "ClaimLostError", "CorruptChunkError", "ForkedProcessError", "FormatError",
        "IdentityError", "MissingShardError", "StoreAccessError", "StoreFullError", "VersionError",
    ),
    "storage.index": ("Index", "assign_slots", "build_index"),
    "storage.manifest": ("Manifest",),
    "storage.plan": ("plan_to_json",),
    "storage.reader": ("CacheReader",),
    "storage.repairs": ("Repair", "repair"),
    "storage.report": ("Problem", "Report"),
    "storage.schema": ("Array", "Field", "Geometry", "ShardId"),
    "storage.shrinking": ("drop_views",),
    "storage.signals": ("Signal",),
    "storage.verification": ("verify",),
    "storage.writer": ("CacheWriter",),
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Array", "CacheError", "CacheReader", "CacheWriter", "ClaimLostError", "Codec", "Comparison",
    "Copied", "CorruptChunkError", "Field", "ForkedProcessError", "FormatError", "Geometry",
    "IdentityError", "Index", "Manifest", "MissingShardError", "Preset", "Problem", "RecordCodec",
    "Repair", "Report", "ShardId", "Signal", "StoreAccessError", "StoreFullError", "VersionError",
    "assign_slots", "build_index", "compare", "copy_cache", "drop_views", "get_preset",
    "plan_to_json", "read_logs", "register_codec", "register_preset", "repair", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
