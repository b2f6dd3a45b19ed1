"""Detectors as detectron2 builds them, and what distillation needs to know of each family.

Names are imported on first use: PyTorch and detectron2 take seconds, which `--help` need not wait.
"""

from __future__ import annotations

import importlib
import runpy
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .checkpoint import SafeCheckpointer, export_model, load_model, weights_path
    from .families import DenseOutputs, DetectorFamily, family_of, register_family
    from .fingerprint import config_fingerprint, teacher_fingerprint
    from .images import distilled_images, some_places, to_model_image, training_images
    from .setup import Setup

# Before any other package of ours is imported by its name, which a folder of the user's may have.
runpy.run_path(str(Path(__file__).parents[1] / "configs" / "collisions.py"))["refuse_shadows"]()

# detectron2's own, at import and at its first anchors; nothing that a user could act on.
warnings.filterwarnings("ignore", message=".*(torch.jit.script|torch.meshgrid)")

_MODULES = {
    "checkpoint": ("SafeCheckpointer", "export_model", "load_model", "weights_path"),
    "families": ("DenseOutputs", "DetectorFamily", "family_of", "register_family"),
    "fingerprint": ("config_fingerprint", "teacher_fingerprint"),
    "images": ("distilled_images", "some_places", "to_model_image", "training_images"),
    "setup": ("Setup",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "DenseOutputs",
    "DetectorFamily",
    "SafeCheckpointer",
    "Setup",
    "config_fingerprint",
    "distilled_images",
    "export_model",
    "family_of",
    "load_model",
    "register_family",
    "some_places",
    "teacher_fingerprint",
    "to_model_image",
    "training_images",
    "weights_path",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_MODULE_OF[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
