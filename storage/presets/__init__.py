"""The presets: named codecs, one module each. Importing this package does not import PyTorch."""

from __future__ import annotations

import importlib
import pkgutil
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from storage.presets.base import Preset

_SHARED = ("base", "codes", "placing", "scores")


def preset_names() -> tuple[str, ...]:
    """Return the names of all presets, sorted."""
    names = (module.name for module in pkgutil.iter_modules(__path__))
    return tuple(sorted(name for name in names if name not in _SHARED))


def get_preset(name: str, **parameters: Any) -> Preset:
    """Make a preset from its name and parameters, as they stand in a config or a manifest.

    Raises:
        ValueError: no such preset, or a parameter that it does not take; lists what there is.
    """
    if name not in preset_names():
        raise ValueError(f"preset {name!r}: expected one of {', '.join(preset_names())}")
    kind = importlib.import_module(f"{__name__}.{name}").PRESET
    try:
        preset: Preset = kind(**parameters)
    except TypeError as error:
        raise ValueError(f"preset {name}: {error}") from error
    return preset
