"""One training step: detectron2's, with accumulation, mixed precision on any device, and errors
that say which images they come from.
"""

from __future__ import annotations

import re
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from configs.wording import one_line

from .readback import Readback
from .stopping import Interrupted, StopSignals

# What DistributedDataParallel says of a step whose losses left out some weights.
_UNUSED = re.compile(r"Parameter indices which did not receive grad for rank \d+: ([\d ]+)")

Batch = list[dict[str, Any]]
Losses = dict[str, Tensor]
T = TypeVar("T")

# SOLVER.AMP.DTYPE: in what the forward pass runs under mixed precision.
AMP_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}

# With batch norm or counts over all ranks, others can wait in their forward pass for the rank that
# failed in its own.
_PATIENCE = timedelta(seconds=60)
_SIGNAL_SEC = 0.3


class Loop(SimpleTrainer):
    """Steps over a loader of lists of detectron2 inputs.

    A step takes one batch from the loader and runs it in `accumulate` parts of equal size, whose
    gradients are averaged as those of as many ranks are: the step of the whole batch in the memory
    of a part. Every part normalises its losses by its own counts and batch statistics.

    Under mixed precision the forward pass runs in float16, with scaled losses, or in bfloat16,
    whose range needs no scaling. What fails on one rank fails on all of them in the same step, so
    that none waits for another in an exchange that never comes.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Batch],
        optimizer: torch.optim.Optimizer,
        *,
        device: torch.device,
        accumulate: int = 1,
        mixed_precision: torch.dtype | None = None,
        signals: StopSignals | None = None,
        on_stop: Callable[[], str] = str,
    ) -> None:
        """Args:

        model: gives losses by name.
        loader: endless.
        optimizer: with gradient clipping, if wanted, built in.
        device: where the model is.
        accumulate: parts of a step.
        mixed_precision: the type that the forward pass runs in; None: that of the weights.
        signals: end the run before a step.
        on_stop: called on every rank when one of them got no batch or a signal, before the error is
            raised; the model is then as the last whole step left it. Says what it saved.
        """
        super().__init__(model, loader, optimizer)
        self._device = device
        self._accumulate = accumulate
        self._signals = signals or StopSignals()
        self._on_stop = on_stop
        self._autocast: dict[str, Any] = {
            "dtype": mixed_precision, "enabled": mixed_precision is not None,
        }  # fmt: skip
        self.grad_scaler = torch.amp.GradScaler(
            device.type, enabled=mixed_precision == torch.float16
        )
        # Flags of the host travel by gloo: NCCL would make every step wait for the GPU.
        self._host_group: Any = (
            dist.new_group(backend="gloo") if comm.get_world_size() > 1 else None
        )

    def start_loader(self) -> None:
        """Start the loader's workers: PyTorch seeds them from the generators of this process."""
        _ = self._data_loader_iter

    def run_step(self) -> None:
        """Take a batch, sum up gradients over its parts, step.

        Raises:
            FloatingPointError: a loss is not finite; names iteration, term and image ids.
        """
        assert self.model.training, "the model was changed to evaluation mode"
        start = time.perf_counter()
        batch = self._next_batch()
        waited = time.perf_counter() - start
        self.optimizer.zero_grad()
        size = len(batch) // self._accumulate
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        found = []
        for number, part in enumerate(parts, start=1):
            with self._synchronised(last=number == len(parts)):
                # Agreed upon before the backward pass, in which ranks wait for each other.
                losses = self._together(self._forward, part, patience=_PATIENCE, names=sorted)
                # Begun here: they are there by the time that the backward pass is launched.
                values = Readback(torch.stack([loss.detach() for loss in losses.values()]))
                total = torch.stack(list(losses.values())).sum() / len(parts)
                self.grad_scaler.scale(total).backward()
            check = partial(self._checked, losses, values, part, last=number == len(parts))
            found.append(self._together(check, patience=_PATIENCE))
        self.after_backward()
        self._write_metrics(_mean(found), waited)
        # Clipping is a part of the optimizer's step, and a fused optimizer would unscale in it.
        self.grad_scaler.unscale_(self.optimizer)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _forward(self, part: Batch) -> Losses:
        try:
            with torch.autocast(self._device.type, **self._autocast):
                return self.model(part)
        except FloatingPointError as error:
            raise FloatingPointError(f"{self._place(part)}: {error}") from error

    def _checked(self, losses: Losses, reading: Readback, part: Batch, *, last: bool) -> Losses:
        """The values of the losses on the host, unless one of them or a gradient is not there."""
        if last and isinstance(self.model, DistributedDataParallel):
            _check_gradients(self.model, self._place(part))
        (values,) = reading.wait()
        found = dict(zip(losses, values.unbind(), strict=True))
        broken = [
            f"{name} is {value.item()}"
            for name, value in found.items()
            if not abs(value.item()) < float("inf")
        ]
        if broken:
            raise FloatingPointError(
                f"{self._place(part)}: {', '.join(broken)}; training diverged: lower "
                "SOLVER.BASE_LR or the weights of the loss, or warm up longer"
            )
        return found

    def _place(self, part: Batch) -> str:
        ids = ", ".join(str(item.get("image_id", "?")) for item in part)
        return f"iteration {self.iter}, images {ids}"

    def _synchronised(self, *, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged between the ranks in the last part alone."""
        if last or not isinstance(self.model, DistributedDataParallel):
            return nullcontext()
        return self.model.no_sync()

    def _next_batch(self) -> Batch:
        """The next batch, or the end of the run on all ranks."""
        return self._together(self._read, on_failure=self._on_stop)

    def _read(self) -> Batch:
        with self._signals.immediate():
            try:
                return next(self._data_loader_iter)
            except Exception:
                # A scheduler signals the loader's workers too, and may have done so first.
                time.sleep(_SIGNAL_SEC)
                raise

    def _together(
        self,
        action: Callable[..., T],
        *args: Any,
        on_failure: Callable[[], str] = str,
        patience: timedelta | None = None,
        names: Callable[[T], list[str]] | None = None,
    ) -> T:
        """Do it on every rank; where it fails on one, it fails on all of them.

        Args:
            action, args: what to do.
            on_failure: called on every rank before the error is raised.
            patience: how long a rank that failed waits to tell the others, where these may wait
                for it within the action itself; None: until they come.
            names: of the terms in what the action gives, which are to be the same on every rank.

        Raises:
            Interrupted: a signal came to any rank.
            Exception: what this rank's own action raised.
            ValueError: with the message of another rank; or the terms differ.
        """
        result: T | None = None
        failure: Exception | Interrupted | None = None
        terms: list[str] = []
        try:
            result = action(*args)
            terms = names(result) if names else []
        except (Exception, Interrupted) as error:
            failure = error
        if self._any_rank(failure, terms, patience):
            signal = failure.number if isinstance(failure, Interrupted) else None
            states = comm.all_gather((signal, one_line(failure) if failure else "", terms))
            done = on_failure()
            for number, _, _ in states:
                if number is not None:
                    raise Interrupted(number, done)
            told = [text for _, text, _ in states if text]
            if not told:
                named = [terms for _, _, terms in states]
                raise ValueError(f"iteration {self.iter}: {_differing(named)}")
            raise failure or ValueError(told[0])
        return cast(T, result)

    def _any_rank(
        self,
        failure: Exception | Interrupted | None,
        terms: list[str],
        patience: timedelta | None,
    ) -> bool:
        """Whether one of the ranks failed, or has other terms than the others."""
        if self._host_group is None:
            return failure is not None
        # The largest and the smallest number that stands for the terms of a rank.
        number = zlib.crc32(repr(terms).encode())
        found = torch.tensor([failure is not None, number, -number])
        work = dist.all_reduce(found, dist.ReduceOp.MAX, group=self._host_group, async_op=True)
        if failure is None or patience is None:
            work.wait()
        else:
            try:
                work.wait(patience)
            except RuntimeError:
                # Its end is what ends the others, by whoever started them.
                raise failure from None
        failed, largest, smallest = found.tolist()
        return bool(failed or largest != -smallest)

    def wait_for_ranks(self) -> None:
        """Return when every rank is here: those that end first make launchers end the others."""
        if self._host_group is not None:
            dist.barrier(group=self._host_group)

    def state_dict(self) -> dict[str, Any]:
        """As detectron2's, with the scaler under the name that its AMPTrainer gives it."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore optimizer and scaler.

        Raises:
            ValueError: the optimizer trained other weights.
        """
        try:
            super().load_state_dict(state_dict)
        except ValueError as error:
            raise ValueError(
                f"the run to resume trained other weights of the model ({error}): freeze those "
                "that it had frozen (MODEL.BACKBONE.FREEZE_AT), or start anew in another OUTPUT_DIR"
            ) from error
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _mean(parts: list[Losses]) -> Losses:
    """What each term is in the step: 0 in the parts that lack it."""
    names = dict.fromkeys(name for part in parts for name in part)
    zero = torch.zeros(())
    return {name: torch.stack([part.get(name, zero) for part in parts]).mean() for name in names}


def _differing(terms: list[list[str]]) -> str:
    """How the first rank's terms differ from those of another."""
    rank = max(range(len(terms)), key=lambda rank: terms[rank] != terms[0])
    differing = ", ".join(sorted({*terms[0]} ^ {*terms[rank]}))
    return (
        f"the losses of the ranks differ: {differing} came from one of the ranks 0 and {rank} "
        "only; each has to give all of them in every step (0 times what it computed from where "
        "there is nothing to compare)"
    )


def _check_gradients(model: DistributedDataParallel, place: str) -> None:
    """Every weight that is trained got a gradient in the backward pass, or the ranks wait for it.

    Raises:
        ValueError: names the weights that the losses do not depend on.
    """
    try:
        model._check_reducer_finalized()
    except RuntimeError as error:
        found = _UNUSED.search(str(error))
        if found is None:
            raise
        trained = [name for name, one in model.module.named_parameters() if one.requires_grad]
        unused = ", ".join(trained[int(place)] for place in found[1].split())
        raise ValueError(
            f"{place}: the losses do not depend on {unused}, which are trained: of several ranks, "
            "each has to use all of them in every step; use them (times 0 where there is nothing "
            "to compare), or freeze them by requires_grad_"
        ) from error
