"""A GPU for counting: tensors that say they are on one, and are computed on the CPU.

What a small training step costs on a GPU is launches, and the times that the host waits. Both
follow from the program, not from the machine, so both can be counted without a GPU: under
`PretendedGpu` a tensor that is moved to `cuda` is a `_Pretended` one, which computes on the CPU,
refuses tensors of the host beside it as a GPU does, and counts every launch and every wait, with
the line of this project that caused it.

Forward passes only: autograd records them, but its engine asks for a device that there is not. A
launch is one operation that is no view, which is about one kernel; that is enough to compare.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import FrameType
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

GPU = torch.device("cuda:0")
_ROOT = str(Path(__file__).parent.parent)

# Nothing is launched for these.
_FREE = {
    "view", "_unsafe_view", "slice", "select", "expand", "t", "transpose", "permute", "unsqueeze",
    "squeeze", "detach", "alias", "split", "split_with_sizes", "unbind", "as_strided",
    "_reshape_alias", "lift_fresh", "diagonal", "unfold", "empty", "empty_like", "empty_strided",
    "new_empty", "new_empty_strided", "_local_scalar_dense",
}  # fmt: skip
# The size of these results, or the result itself, is known to the GPU alone.
_WAITING = {
    "_local_scalar_dense", "nonzero", "masked_select", "bincount", "_unique2", "unique_dim",
    "equal", "nms",
}  # fmt: skip
_INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_"}
# These take tensors of both sides.
_CROSSING = _INDEXING | {"copy_", "_to_copy", "set_"}


class _Pretended(Tensor):
    """A tensor that says it is on the GPU; `held` is on the CPU."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> _Pretended:
        made: _Pretended = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            device=GPU,
        )
        made.held = held
        return made

    def __init__(self, held: Tensor) -> None:
        """See `__new__`."""

    def tolist(self) -> Any:
        """As every list of a GPU's values: after waiting for them."""
        _active().wait("tolist")
        alone: Any = self.detach()
        return alone.held.tolist()

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return _active().run(function, args, kwargs or {})


class _Event:
    """What stands for `torch.cuda.Event`."""

    def synchronize(self) -> None:
        """Count the wait."""
        _active().wait("event")


class _Stream:
    """What stands for `torch.cuda.Stream`: nothing runs apart from the program here."""

    def record_event(self) -> _Event:
        """One that is waited for at once."""
        return _Event()


def _current_stream(device: torch.device) -> _Stream:
    """The stream of a tensor's own device."""
    assert device == GPU, "events are recorded on the GPU that computes"
    return _Stream()


def uncompiled() -> AbstractContextManager[None]:
    """Run TorchScript as written: it would compile for the GPU that it has seen once."""
    found: AbstractContextManager[None] = torch.jit.optimized_execution(False)  # type: ignore[attr-defined]
    return found


class PretendedGpu(TorchDispatchMode):
    """Counts while it is active.

    Attributes:
        waits: how often the host waited for the GPU, by kind and line.
        launches: how often something was launched, by line.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.launches: Counter[str] = Counter()
        self._around = ExitStack()

    def __enter__(self) -> PretendedGpu:
        torch._C._ensureCUDADeviceGuardSet()
        torch._C._set_only_lift_cpu_tensors(True)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        self._around.enter_context(mock.patch("torch.cuda._lazy_init", lambda: None))
        self._around.enter_context(mock.patch("torch.cuda.current_stream", _current_stream))
        self._around.enter_context(mock.patch.object(Tensor, "pin_memory", lambda held: held))
        self._around.enter_context(torch.backends.cudnn.flags(enabled=False))
        self._around.enter_context(uncompiled())
        _stack.append(self)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        _stack.pop()
        self._around.close()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        return self.run(function, args, kwargs or {})

    def wait(self, kind: str) -> None:
        """Count that the host waits."""
        self.waits[kind, _line()] += 1

    def run(self, function: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """Compute one operation on the CPU, and count what it would be on a GPU."""
        name = function._schema.name.split("::")[1]
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        theirs = any(isinstance(x, _Pretended) for x in tensors)
        target = self._target(name, args, kwargs, theirs)
        if theirs and name not in _CROSSING:
            alone = [x for x in tensors if not isinstance(x, _Pretended) and x.dim()]
            if alone:
                raise RuntimeError(f"{function}: a tensor of the host beside one of the GPU")
        if theirs:
            self._count_waits(name, args, kwargs)
        self._count_copy(name, args, kwargs, target)
        if target and name not in _FREE:
            self.launches[_line()] += 1
        given = tree_map(_held, kwargs) | ({"device": torch.device("cpu")} if target else {})
        if "device" not in kwargs:
            given.pop("device", None)
        given.pop("pin_memory", None)
        result = function(*tree_map(_held, args), **given)
        if not target:
            return result
        result = tree_map(lambda x: _Pretended(x) if isinstance(x, Tensor) else x, result)
        return return_and_correct_aliasing(function, args, kwargs, result) if theirs else result

    def _target(self, name: str, args: Any, kwargs: dict[str, Any], theirs: bool) -> bool:
        """Whether the result is on the GPU."""
        if name == "copy_":
            return isinstance(args[0], _Pretended)
        if name == "_local_scalar_dense":
            return False
        device = kwargs.get("device")
        return theirs if device is None else torch.device(device).type == "cuda"

    def _count_waits(self, name: str, args: Any, kwargs: dict[str, Any]) -> None:
        if name in _WAITING or (name == "repeat_interleave" and not kwargs.get("output_size")):
            self.wait(name)
        if name in _INDEXING and isinstance(args[0], _Pretended):
            masks = [x for x in args[1] if isinstance(x, Tensor) and x.dtype == torch.bool]
            # One value written by a mask is a fill, for which nothing has to be known.
            if masks and (name == "index" or args[2].numel() != 1):
                self.wait("mask as an index")
            if any(isinstance(x, Tensor) and not isinstance(x, _Pretended) for x in args[1]):
                self.wait("index from the host")

    def _count_copy(self, name: str, args: Any, kwargs: dict[str, Any], target: bool) -> None:
        if name == "copy_":
            source, blocking = args[1], not (args[2] if len(args) > 2 else False)
        elif name == "_to_copy":
            source, blocking = args[0], True
        else:
            return
        blocking = blocking and not kwargs.get("non_blocking")
        if blocking and isinstance(source, _Pretended) != target:
            self.wait("copy to the GPU" if target else "copy to the host")


_stack: list[PretendedGpu] = []


def _active() -> PretendedGpu:
    return _stack[-1]


def _held(value: Any) -> Any:
    return value.held if isinstance(value, _Pretended) else value


def _line() -> str:
    """The innermost line of this project, this module left out."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        path = frame.f_code.co_filename
        if path != __file__ and path.startswith(_ROOT) and "site-packages" not in path:
            return f"{path.removeprefix(_ROOT + '/')}:{frame.f_lineno}"
        frame = frame.f_back
    return "elsewhere"


class LaunchCounter(TorchDispatchMode):
    """Counts operations that are no view wherever they run: for a backward pass, on the CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self, function: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        name = function._schema.name.split("::")[1]  # type: ignore[attr-defined]
        self.count += name not in _FREE
        return function(*args, **(kwargs or {}))
