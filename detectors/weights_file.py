"""What a file of weights holds: checked against its own checksums, read without running anything.

`.pth` files go through `torch.load(weights_only=True)`; the model zoo's `.pkl` files through an
unpickler that admits numpy arrays alone. Errors do not name the file, which the caller does.
"""

from __future__ import annotations

import errno
import logging
import pickle
import re
import zipfile
from typing import Any

import numpy as np
import torch
from fvcore.common.checkpoint import _strip_prefix_if_present
from torch import Tensor

from configs.wording import listed

logger = logging.getLogger(__name__)

# What a pickled dict of numpy arrays needs: the array, its dtype and the reconstructors, under the
# module names of numpy 1 and 2; the last is that of pickle's protocol 5, Python's own from 3.14 on.
_SCALARS = {(f"numpy.{module}.multiarray", "scalar") for module in ("core", "_core")}
_ADMITTED = (
    _SCALARS
    | {(module, "_reconstruct") for module, _ in _SCALARS}
    | {(f"numpy.{module}.numeric", "_frombuffer") for module in ("core", "_core")}
    | {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")}
)
# What torch's own unpickler is allowed beyond tensors: a numpy number, and how one is described.
_NUMBERS = np.typecodes["AllInteger"] + np.typecodes["AllFloat"] + "?"
_NUMPY_NUMBERS: list[Any] = [
    np.dtype,
    *{type(np.dtype(code)) for code in _NUMBERS},
    *((np._core.multiarray.scalar, ".".join(name)) for name in _SCALARS),  # type: ignore[attr-defined]
]
# Names in a message.
_SHOWN = 4
# MS-DOS attribute of a folder, in an archive.
_FOLDER = 0x10
# Where others keep the weights: detectron2; mmdetection and Lightning; PyTorch's tutorials; pycls.
_WEIGHTS_KEYS = ("model", "state_dict", "model_state_dict", "model_state")
# What wrapping a model puts before its names: data parallelism, compilation, Lightning.
_PREFIXES = ("module.", "_orig_mod.", "model.")


class WeightsFileError(ValueError):
    """A file of weights that is damaged, or that holds something else."""


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ADMITTED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}")
        return super().find_class(module, name)


def read_weights_file(path: str) -> dict[str, Any]:
    """Read a file of weights as a checkpoint of detectron2.

    Taken are detectron2's own checkpoints, its model zoo's and Caffe2's pickles, pycls', and those
    of others that keep tensors by name, plain or under a key that says so.

    Args:
        path: a local file.

    Returns:
        `{"model": tensors or arrays by name}` and what lies beside it in the file;
        `matching_heuristics` asks detectron2 to match other names with the model's.

    Raises:
        OSError: this machine does not let it be read.
        WeightsFileError: says what the file holds, and what is needed.
    """
    is_zip = _is_zip(path)
    if is_zip:
        _require_intact(path)
    if path.endswith(".pkl") and not is_zip:
        content = _require_dict(_load_arrays(path))
        if not ("model" in content and "__author__" in content):
            return _caffe2(content)
    else:
        content = _require_dict(_load_tensors(path))
    checkpoint = _with_model(content)
    if path.endswith(".pyth"):
        for name in [name for name in checkpoint["model"] if name.endswith("num_batches_tracked")]:
            del checkpoint["model"][name]
        checkpoint |= {"__author__": "pycls", "matching_heuristics": True}
    return checkpoint


def _is_zip(path: str) -> bool:
    with open(path, "rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _require_intact(path: str) -> None:
    """Compare every part of an archive with its CRC: torch's own reader does not."""
    try:
        with zipfile.ZipFile(path) as archive:
            parts = archive.infolist()
            # torch.serialization.set_crc32_options(False) leaves them all out.
            if not any(part.CRC for part in parts):
                logger.warning("%s holds no checksums: damage would not be noticed", path)
                return
            # torch reads nothing of what is marked as a folder, and leaves the tensor as it is.
            marked = [part.filename for part in parts if part.external_attr & _FOLDER]
            damaged = next(iter(marked), None) or archive.testzip()
    # A changed bit may claim encryption, another compression, another size or place.
    except Exception as error:
        if isinstance(error, OSError) and error.errno != errno.EINVAL:
            raise
        message = f"the file is damaged or was cut short ({first_line(error)}); bring it back"
        raise WeightsFileError(message) from None
    if damaged:
        raise WeightsFileError(
            f"the file is damaged, {damaged} in it does not have its checksum; bring it back"
        )


def _load_tensors(path: str) -> Any:
    try:
        with torch.serialization.safe_globals(_NUMPY_NUMBERS):
            return torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise WeightsFileError(
            f"not a checkpoint of plain tensors: {_what_it_holds(path, error)}"
        ) from error


def _what_it_holds(path: str, error: Exception) -> str:
    """What stands in the way of `torch.load(weights_only=True)`, and what to do."""
    with open(path, "rb") as file:
        start = file.read(64)
    if not start:
        return "the file is empty"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if start.lstrip().startswith(b"<"):
        return "it is a web page; fetch the file itself"
    if "TorchScript" in str(error):
        return "it is a TorchScript program; expected the state_dict of the model, saved alone"
    classes = _foreign_classes(path, error)
    if classes:
        return (
            f"it holds objects of {listed(classes, shown=_SHOWN)}, and loading them could run "
            "code; where you trust the file, load it with weights_only=False and save its "
            "state_dict alone"
        )
    if zipfile.is_zipfile(path) or start[:1] == b"\x80":
        return f"PyTorch cannot read it ({first_line(error)})"
    return "it is no file that torch.save wrote; expected a .pth file of tensors by name"


def _foreign_classes(path: str, error: Exception) -> list[str]:
    """The classes that are not admitted; of an old file, without an archive, the first alone."""
    admitted = {".".join(name) for name in _SCALARS} | {"numpy.dtype"}
    admitted |= {f"numpy.dtypes.{one.__name__}" for one in _NUMPY_NUMBERS if isinstance(one, type)}
    try:
        found = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:
        found = re.findall(r"(?:Unsupported global: GLOBAL|Unsupported class) (\S+)", str(error))
    return sorted(set(found) - admitted)


def _load_arrays(path: str) -> Any:
    with open(path, "rb") as file:
        try:
            return _ArrayUnpickler(file, encoding="latin1").load()
        except OSError:
            raise
        except Exception as error:
            raise WeightsFileError(
                f"not a pickle of numpy arrays ({first_line(error)}); it was not loaded, because "
                "unpickling anything else can run code"
            ) from error


def _caffe2(content: dict[str, Any]) -> dict[str, Any]:
    """A file of Detectron1 or Caffe2, as detectron2 takes it."""
    content = content.get("blobs", content)
    weights = {k: v for k, v in content.items() if not k.endswith("_momentum")}
    return {"model": _tensors(weights), "__author__": "Caffe2", "matching_heuristics": True}


def _with_model(content: dict[str, Any]) -> dict[str, Any]:
    """Put the weights under `model`, with the names that they had in the model alone."""
    key = next((key for key in _WEIGHTS_KEYS if isinstance(content.get(key), dict)), None)
    weights = content if key is None else content.pop(key)
    beside = {} if key is None else content
    weights = _tensors(weights)
    for prefix in _PREFIXES * 2:
        _strip_prefix_if_present(weights, prefix)
    return {**beside, "model": weights}


def _tensors(weights: dict[str, Any]) -> dict[str, Any]:
    """Drop what is no tensor, in place: an attribute of a state_dict tells the version of it."""
    held = list(weights)
    for name in held:
        if not (isinstance(name, str) and isinstance(weights[name], Tensor | np.ndarray)):
            del weights[name]
    if not weights:
        names = listed(map(str, held), shown=_SHOWN) or "nothing at all"
        raise WeightsFileError(
            f"it holds no weights, but {names}; expected tensors by name, or a dict of them under "
            f"one of {', '.join(_WEIGHTS_KEYS)}"
        )
    return weights


def _require_dict(content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise WeightsFileError(f"expected a dict of weights, found {type(content).__name__}")
    return content


def first_line(error: Exception) -> str:
    """The first line of an error's text: torch's goes on for many."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
