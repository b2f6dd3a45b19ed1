"""Averaged weights: PyTorch's own bits and checkpoints, without waiting for a GPU."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from detectors.averaging import MovingAverage
from tests.fresh import stdout_of

ROOT = Path(__file__).parent.parent.parent
DECAY = 0.9

# The hooks of the pretended GPU stay in their process.
COUNTING = """
from torch import nn
from benchmarks.pretended_gpu import GPU, PretendedGpu
from detectors.averaging import MovingAverage
with PretendedGpu() as gpu:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(GPU)
    average = MovingAverage(model, 0.9)
    gpu.waits.clear()
    for _ in range(3):
        average.update_parameters(model)
    print(gpu.waits.total(), gpu.launches.total() > 0)
"""


def model_of_several_dtypes() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2).double())


def stock(model: nn.Module) -> AveragedModel:
    return AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(DECAY), use_buffers=True)


def train(model: nn.Module, *averages: AveragedModel) -> None:
    """A few steps that move weights, running statistics and their count."""
    for _ in range(4):
        model[:2](torch.randn(2, 3, 5, 5))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += torch.randn_like(parameter)
        for average in averages:
            average.update_parameters(model)


def saved(average: AveragedModel) -> dict[str, Tensor]:
    """A checkpoint's state after a trip to a file."""
    file = io.BytesIO()
    torch.save(average.state_dict(), file)
    file.seek(0)
    state: dict[str, Tensor] = torch.load(file, weights_only=True)
    return state


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert list(one) == list(other)
    for name, value in one.items():
        assert value.dtype == other[name].dtype and torch.equal(value, other[name]), name


def test_an_average_has_the_bits_of_pytorchs_before_and_after_it_is_resumed() -> None:
    model = model_of_several_dtypes()
    ours, theirs = MovingAverage(model, DECAY), stock(model)
    train(model, ours, theirs)
    state = saved(ours)
    assert_same(state, saved(theirs))
    assert state["n_averaged"] == 4
    resumed, stock_resumed = MovingAverage(model, DECAY), stock(model)
    resumed.load_state_dict(state)
    stock_resumed.load_state_dict(state)
    train(model, resumed, stock_resumed, theirs)
    assert_same(saved(resumed), saved(stock_resumed))
    assert_same(saved(resumed), saved(theirs))


def test_an_update_does_not_wait_for_a_gpu() -> None:
    assert stdout_of([sys.executable, "-c", COUNTING], cwd=ROOT).split() == ["0", "True"]
