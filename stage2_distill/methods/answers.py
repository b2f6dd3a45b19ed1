"""What a method answers, looked at before it is used: it may be one of the user's.

By types and shapes alone, so that nothing waits for a GPU. Each function gives back what it was
given, and raises a ValueError that names the method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from detectron2.structures import Instances
from torch import Tensor

from configs.wording import full_name

if TYPE_CHECKING:
    from .base import Method


def checked_terms(method: Method, terms: Any, device: torch.device) -> Mapping[str, Tensor]:
    """What `forward` gave: scalar tensors of a device, by some of the names in `weights`."""
    names = tuple(method.weights)
    if not isinstance(terms, Mapping) or not all(
        name in names and _is_scalar(value) for name, value in terms.items()
    ):
        expected = f"scalar tensors by the names in weights {names}"
        raise _refusal(method, "forward", expected, terms)
    for name, value in terms.items():
        if value.device != device:
            # A zero made on the host, for an image without objects: on a CPU nobody notices.
            expected = f"the term {name!r} on {device}, where the student is (as new_zeros)"
            raise _refusal(method, "forward", expected, value, f" on {value.device}")
    return terms


def checked_ground_truth(method: Method, targets: Any, count: int) -> Sequence[Instances]:
    """What `ground_truth` gave: Instances of every image, `count` in all."""
    if (
        isinstance(targets, Sequence)
        and len(targets) == count
        and all(isinstance(one, Instances) for one in targets)
    ):
        return targets
    raise _refusal(method, "ground_truth", f"a list of {count} Instances, one an image", targets)


def checked_metrics(method: Method, metrics: Any) -> Mapping[str, Any]:
    """What `metrics` gave: by name, numbers, tensors of one element or arrays of no axes."""
    if isinstance(metrics, Mapping) and all(
        isinstance(name, str) and _is_number(value) for name, value in metrics.items()
    ):
        return metrics
    raise _refusal(method, "metrics", "numbers by name", metrics)


def _is_scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() == 0 and not value.is_complex()


def _is_number(value: Any) -> bool:
    """Whether `put_scalar` makes a number of it."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    if isinstance(value, np.ndarray | np.bool_):
        return value.ndim == 0 and value.dtype.kind in "biuf"
    return isinstance(value, Real)


def _refusal(method: Method, question: str, expected: str, got: Any, where: str = "") -> ValueError:
    return ValueError(
        f"the method {method.name}: {full_name(type(method))}.{question}: expected "
        f"{expected}, got {_described(got)}{where}"
    )


def _described(value: Any) -> str:
    """The type of a value, of a tensor its shape, and what a container holds."""
    if isinstance(value, Tensor | np.ndarray):
        kind = "a tensor" if isinstance(value, Tensor) else "an array"
        if isinstance(value, Tensor) and value.is_complex():
            kind = "a complex tensor"
        return f"{kind} of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_described(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else type(value).__name__
