"""Values that are copied to the host while more is launched."""

from __future__ import annotations

from unittest import mock

import pytest
import torch

from detectors.readback import Readback


def test_values_come_without_their_graph() -> None:
    values = torch.arange(3.0, requires_grad=True) * 2
    (read,) = Readback(values).wait()
    assert read.tolist() == [0.0, 2.0, 4.0] and not read.requires_grad


class OnGpu(torch.Tensor):
    """Says that it is on a GPU."""

    is_cuda = True
    device = torch.device("cuda", 1)


def test_the_event_is_recorded_on_the_gpu_of_the_values(monkeypatch: pytest.MonkeyPatch) -> None:
    event = mock.Mock()
    streams = {torch.device("cuda", 1): mock.Mock(record_event=lambda: event)}
    monkeypatch.setattr(torch.cuda, "current_stream", streams.__getitem__)
    Readback(torch.ones(2), torch.ones(2).as_subclass(OnGpu)).wait()
    event.synchronize.assert_called_once_with()


@pytest.mark.gpu
def test_values_are_those_of_the_moment_and_are_waited_for_alone() -> None:
    busy = torch.randn(4000, 4000, device="cuda")
    values = torch.ones(3, device="cuda")
    reading = Readback(values, busy[:1, :1])
    for _ in range(200):
        busy = busy @ busy
    after = torch.cuda.Event()
    after.record()
    read, _ = reading.wait()
    assert not after.query()
    values += 1
    assert read.tolist() == [1.0] * 3 and read.is_pinned()
