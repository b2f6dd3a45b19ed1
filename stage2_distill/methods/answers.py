"""What a method answers, looked at before it is used: it may be one of the user's.

By types and shapes alone, so that nothing waits for a GPU. Each function gives back what it was
given, and raises a ValueError that names the method.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np
from detectron2.structures import Instances
from torch import Tensor

from configs.wording import full_name

if TYPE_CHECKING:
    from .base import Method


def checked_terms(method: Method, terms: Any) -> Mapping[str, Tensor]:
    """What `forward` gave: scalar tensors, by some of the names in `weights`."""
    names = tuple(method.weights)
    if isinstance(terms, Mapping) and all(
        name in names and _is_scalar(value) for name, value in terms.items()
    ):
        return terms
    raise _refusal(method, "forward", f"scalar tensors by the names in weights {names}", terms)


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
    return isinstance(value, Tensor) and value.dim() == 0


def _is_number(value: Any) -> bool:
    """Whether `put_scalar` makes a number of it."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex()
    if isinstance(value, np.ndarray | np.bool_):
        return value.ndim == 0 and value.dtype.kind in "biuf"
    return isinstance(value, Real)


def _refusal(method: Method, question: str, expected: str, got: Any) -> ValueError:
    return ValueError(
        f"the method {method.name}: {full_name(type(method))}.{question}: expected "
        f"{expected}, got {_described(got)}"
    )


def _described(value: Any) -> str:
    """The type of a value, of a tensor its shape, and what a container holds."""
    if isinstance(value, Tensor | np.ndarray):
        kind = "a tensor" if isinstance(value, Tensor) else "an array"
        return f"{kind} of shape {tuple(value.shape)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key!r}: {_described(one)}" for key, one in value.items()) + "}"
    if isinstance(value, list | tuple):
        return f"a {type(value).__name__} of {len(value)}"
    return "None" if value is None else type(value).__name__
