"""One training step: detectron2's, with accumulation, mixed precision on any device, and errors
that say which images they come from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .command import one_line
from .readback import Readback

Batch = list[dict[str, Any]]
Losses = dict[str, Tensor]


class Loop(SimpleTrainer):
    """Steps over a loader of lists of detectron2 inputs.

    A step takes one batch from the loader and runs it in `accumulate` parts of equal size, whose
    gradients are averaged as those of as many ranks are: the step of the whole batch in the memory
    of a part. Every part normalises its losses by its own counts and batch statistics.

    Under mixed precision the forward pass runs in float16 with scaled losses on a GPU, and in
    bfloat16 on a CPU.
    """

    def __init__(
        self,
        model: nn.Module,
        loader: Iterable[Batch],
        optimizer: torch.optim.Optimizer,
        *,
        device: torch.device,
        accumulate: int = 1,
        mixed_precision: bool = False,
        on_data_failure: Callable[[], None] = lambda: None,
    ) -> None:
        """Args:

        model: gives losses by name.
        loader: endless.
        optimizer: with gradient clipping, if wanted, built in.
        device: where the model is.
        accumulate: parts of a step.
        mixed_precision: run the forward pass in half precision.
        on_data_failure: called on every rank when one of them got no batch, before the error is
            raised; the model is then as the last whole step left it.
        """
        super().__init__(model, loader, optimizer)
        self._device = device
        self._accumulate = accumulate
        self._on_data_failure = on_data_failure
        half = torch.float16 if device.type == "cuda" else torch.bfloat16
        self._autocast: dict[str, Any] = {"dtype": half, "enabled": mixed_precision}
        self.grad_scaler = torch.amp.GradScaler(
            device.type, enabled=mixed_precision and half == torch.float16
        )
        # Flags of the host travel by gloo: NCCL would make every step wait for the GPU.
        self._host_group: Any = (
            dist.new_group(backend="gloo") if comm.get_world_size() > 1 else None
        )

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
                losses = self._forward(part)
                # Begun here: they are there by the time that the backward pass is launched.
                values = Readback(torch.stack([loss.detach() for loss in losses.values()]))
                total = torch.stack(list(losses.values())).sum() / len(parts)
                self.grad_scaler.scale(total).backward()
            found.append(self._checked(losses, values, part))
        self.after_backward()
        self._write_metrics(_mean(found), waited)
        self.grad_scaler.step(self.optimizer)
        self.grad_scaler.update()

    def _forward(self, part: Batch) -> Losses:
        try:
            with torch.autocast(self._device.type, **self._autocast):
                return self.model(part)
        except FloatingPointError as error:
            raise FloatingPointError(f"{self._place(part)}: {error}") from error

    def _checked(self, losses: Losses, reading: Readback, part: Batch) -> Losses:
        """The values of the losses on the host, unless one is not finite."""
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
        """The next batch; an error on any rank is one on all, so that none waits for another."""
        batch: Batch = []
        failure: Exception | None = None
        try:
            batch = next(self._data_loader_iter)
        except Exception as error:
            failure = error
        if self._any_rank(failure is not None):
            messages = comm.all_gather(one_line(failure) if failure else "")
            self._on_data_failure()
            raise failure or ValueError(next(text for text in messages if text))
        return batch

    def _any_rank(self, flag: bool) -> bool:
        if self._host_group is None:
            return flag
        count = torch.tensor([flag], dtype=torch.int32)
        dist.all_reduce(count, group=self._host_group)
        return bool(count.item())

    def state_dict(self) -> dict[str, Any]:
        """As detectron2's, with the scaler under the name that its AMPTrainer gives it."""
        return {**super().state_dict(), "grad_scaler": self.grad_scaler.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore optimizer and scaler."""
        super().load_state_dict(state_dict)
        if state_dict.get("grad_scaler"):
            self.grad_scaler.load_state_dict(state_dict["grad_scaler"])


def _mean(parts: list[Losses]) -> Losses:
    return {name: torch.stack([part[name] for part in parts]).mean() for name in parts[0]}
