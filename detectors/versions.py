"""The versions of what computes, to be kept with results."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import torch

# Library: names of the packages that may bring it; the first that is installed is recorded.
_LIBRARIES = {
    "torchvision": ("torchvision",),
    "detectron2": ("detectron2", "sal-detectron2"),
    "pillow": ("pillow",),
    "numpy": ("numpy",),
}


def library_versions() -> dict[str, str]:
    """Library to version; of PyTorch with its build, such as +cu130, which brings other kernels."""
    found = {name: _version(packages) for name, packages in _LIBRARIES.items()}
    return {"torch": str(torch.__version__), **found}


def _version(packages: tuple[str, ...]) -> str:
    for package in packages:
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    # A source build on PYTHONPATH has no package metadata.
    return "unknown"
