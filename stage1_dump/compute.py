"""Batches on the device: the teacher's forward, and behind it encoding and the copy to the host.

On a GPU the next forward is launched before the last batch is encoded, and encoding has a stream
of its own: the host then looks at the final boxes of one batch while the GPU computes another. On
a CPU, where the two would share the cores anyway, each batch is finished before the next begins.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from detectors import DenseOutputs
from storage import Geometry

from .arrays import ShardArrays
from .images import ImageBatch
from .profile import COPY, ENCODE, FORWARD, Profile
from .teacher import Teacher, naming_the_batch


@dataclass(frozen=True, kw_only=True)
class _Launched:
    """A batch whose forward is under way: what it gives, and what is to be done with it."""

    outputs: DenseOutputs
    ready: torch.cuda.Event | None
    written: list[int]
    pixels: dict[str, NDArray[Any]]
    geometry: Geometry
    arrays: ShardArrays
    finished: Callable[[], None] | None


class BatchComputer:
    """Takes batches in order and fills the arrays of their shards in the same order."""

    def __init__(self, teacher: Teacher, profile: Profile) -> None:
        """Args: the teacher, and where the time is counted."""
        self._teacher = teacher
        self._profile = profile
        on_gpu = teacher.device.type == "cuda"
        # Its small kernels go before the large ones of a forward, for the host waits for them.
        self._behind = torch.cuda.Stream(teacher.device, priority=-1) if on_gpu else None
        self._launched: deque[_Launched] = deque()
        self._num_ahead = 1 if on_gpu else 0
        self._proven = False

    def submit(
        self,
        batch: ImageBatch,
        geometry: Geometry,
        arrays: ShardArrays,
        finished: Callable[[], None] | None = None,
    ) -> None:
        """Launch the forward of a batch, and encode the one before it.

        Args:
            batch: views of one padded size, all of them rendered.
            geometry: the array sizes of their bucket.
            arrays: where the codes go.
            finished: called when this batch is in its arrays.

        Raises:
            ValueError: outputs of this batch or an earlier one are not finite.
            DumpError: the GPU is out of memory.
        """
        with self._profile.step(FORWARD), naming_the_batch(len(batch), geometry):
            outputs = self._teacher.run(batch.images(self._teacher.device))
        ready = None
        if self._behind is not None:
            ready = torch.cuda.current_stream(self._teacher.device).record_event()
        self._launched.append(
            _Launched(
                outputs=outputs,
                ready=ready,
                written=batch.written,
                pixels=batch.pixels,
                geometry=geometry,
                arrays=arrays,
                finished=finished,
            )
        )
        self._finish_all_but(self._num_ahead)

    def drain(self) -> None:
        """Finish what was submitted; raises as `submit` does."""
        self._finish_all_but(0)

    def _finish_all_but(self, count: int) -> None:
        while len(self._launched) > count:
            one = self._launched.popleft()
            self._encode(one)
            if one.finished is not None:
                one.finished()

    def _encode(self, one: _Launched) -> None:
        on_stream = nullcontext() if self._behind is None else torch.cuda.stream(self._behind)
        with on_stream, naming_the_batch(len(one.outputs.logits), one.geometry):
            if self._behind is not None and one.ready is not None:
                self._behind.wait_event(one.ready)
            with self._profile.step(ENCODE):
                codes = self._teacher.encode(one.outputs, one.geometry)
                if not self._proven:
                    # Before anything is stored that nobody could read.
                    self._teacher.prove(one.outputs, codes, one.geometry)
                    self._proven = True
            with self._profile.step(COPY):
                one.arrays.append(_rows(codes, one.written, self._teacher.device), one.pixels)
        if self._behind is not None:
            # The next forward may get the memory of these outputs: not before they were read.
            torch.cuda.current_stream(self._teacher.device).wait_stream(self._behind)


def _rows(codes: dict[str, Tensor], written: list[int], device: torch.device) -> dict[str, Tensor]:
    """The rows of the views that become records; mostly all, and then nothing is copied."""
    if all(len(code) == len(written) for code in codes.values()):
        return codes
    # Sent once: for an index on the host the GPU would be waited for with every field.
    rows = torch.tensor(written, dtype=torch.long).to(device, non_blocking=True)
    return {name: code[rows] for name, code in codes.items()}
