"""Checkpoints: detectron2's own, read without executing anything that they hold.

`.pth` files go through `torch.load(weights_only=True)`; the model zoo's `.pkl` files through an
unpickler that admits numpy arrays alone.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.config import CfgNode
from detectron2.utils.file_io import PathManager
from torch import nn

from .building import build_detector

# What a pickled dict of numpy arrays needs: the array, its dtype and the two reconstructors, under
# the module names of numpy 1 and 2.
_ADMITTED = {
    (module, name)
    for module in ("numpy.core.multiarray", "numpy._core.multiarray")
    for name in ("_reconstruct", "scalar")
} | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return super().find_class(module, name)


class SafeCheckpointer(DetectionCheckpointer):
    """detectron2's checkpointer, except that loading never runs code and never loads in part."""

    def __init__(self, model: nn.Module, *args: Any, strict: bool = False, **kwargs: Any) -> None:
        """Args: as `DetectionCheckpointer`, and

        strict: refuse weights that do not fit the whole model. Off, detectron2 warns and loads
            what fits: the way to start from an ImageNet backbone or to change the classes.
        """
        super().__init__(model, *args, **kwargs)
        self._strict = strict

    def _torch_load(self, f: str) -> dict[str, Any]:
        try:
            data = torch.load(f, map_location="cpu", weights_only=True)
        except Exception as error:
            raise ValueError(
                f"{f}: not a checkpoint of plain tensors ({_first_line(error)}); "
                "expected a .pth file that torch.load(weights_only=True) can read"
            ) from error
        return _require_dict(data, f)

    def _load_file(self, filename: str) -> dict[str, Any]:
        if not filename.endswith(".pkl"):
            return super()._load_file(filename)
        data = _load_arrays(filename)
        if "model" in data and "__author__" in data:
            return data
        data = data.get("blobs", data)
        weights = {k: v for k, v in data.items() if not k.endswith("_momentum")}
        return {"model": weights, "__author__": "Caffe2", "matching_heuristics": True}

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        incompatible = super()._load_model(checkpoint)
        if not self._strict:
            return incompatible
        problems = [f"{name} is missing" for name in incompatible.missing_keys]
        problems += [f"{name} is unknown" for name in incompatible.unexpected_keys]
        problems += [
            f"{name} has shape {tuple(got)}, not {tuple(want)}"
            for name, got, want in incompatible.incorrect_shapes
        ]
        if problems:
            shown = "; ".join(problems[:8])
            more = f"; and {len(problems) - 8} more" if len(problems) > 8 else ""
            raise ValueError(f"weights do not fit the model: {shown}{more}")
        return incompatible


def load_model(cfg: CfgNode) -> nn.Module:
    """Build a detector in evaluation mode and load `MODEL.WEIGHTS` into all of it.

    Raises:
        FileNotFoundError: there is no such file.
        OSError: it cannot be fetched from its URL.
        ValueError: no weights are named, the file is not a checkpoint, or it does not fit.
    """
    if not cfg.MODEL.WEIGHTS:
        raise ValueError("MODEL.WEIGHTS is empty; expected the path of a trained checkpoint")
    path = weights_path(cfg.MODEL.WEIGHTS)
    # Initial weights are drawn only to be overwritten: a student that is built next must start
    # from the same weights with and without a teacher beside it.
    with torch.random.fork_rng(devices=[]):
        model = build_detector(cfg)
    try:
        SafeCheckpointer(model, strict=True).load(path)
    except ValueError as error:
        raise ValueError(f"{cfg.MODEL.WEIGHTS}: {error}") from error
    except OSError as error:
        if "://" not in path:
            raise
        raise OSError(
            f"{path}: the weights could not be fetched ({_first_line(error)}); check the URL, or "
            "fetch the file by other means and name its path"
        ) from error
    return model.eval()


def weights_path(name: str) -> str:
    """The local path of weights named by path or URL (fetched by detectron2's own catalog).

    Raises:
        FileNotFoundError: there is no such local file.
    """
    if "://" in name:
        return name
    if not Path(name).is_file():
        raise FileNotFoundError(
            f"weights not found: {name}; train the model first or correct the "
            "path (MODEL.WEIGHTS, or TEACHER.WEIGHTS for a teacher)"
        )
    return name


def export_model(model: nn.Module, path: Path) -> None:
    """Write weights alone, as a plain detectron2 checkpoint that any detectron2 loads."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        torch.save({"model": model.state_dict()}, file)
    partial.replace(path)


def _load_arrays(filename: str) -> dict[str, Any]:
    with PathManager.open(filename, "rb") as file:
        try:
            data = _ArrayUnpickler(file, encoding="latin1").load()
        except Exception as error:
            raise ValueError(
                f"{filename}: not a pickle of numpy arrays ({_first_line(error)}); it was not "
                "loaded, because unpickling anything else can run code"
            ) from error
    return _require_dict(data, filename)


def _require_dict(data: Any, filename: str) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"{filename}: expected a dict of weights, found {type(data).__name__}")
    return data


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
