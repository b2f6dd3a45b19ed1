"""The adaptation layer: where it is computed, how it starts, what it refuses."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from stage2_distill.methods.adaptation import Adaptation
from tests.stage2_distill import reference

KINDS = ("conv3x3", "conv1x1")


def pyramid(channels: int, images: int = 2) -> list[Tensor]:
    """Two levels, with a gradient."""
    return [torch.randn(images, channels, h, w, requires_grad=True) for h, w in ((7, 9), (4, 5))]


def randomise(layer: Adaptation) -> None:
    """Away from the identity, so that every weight counts."""
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)


@pytest.mark.parametrize("kind", KINDS)
def test_it_is_a_convolution_shared_by_the_levels(kind: str) -> None:
    layer = Adaptation(kind, student_channels=2, teacher_channels=3)
    randomise(layer)
    assert layer.conv is not None and layer.conv.bias is not None
    features = pyramid(2, images=1)
    weight = layer.conv.weight.detach().double().numpy()
    bias = layer.conv.bias.detach().double().numpy()
    for before, after in zip(features, layer(features), strict=True):
        wanted = reference.convolve(before[0].detach().double().numpy(), weight, bias)
        np.testing.assert_allclose(after[0].detach().numpy(), wanted, atol=1e-5)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), kind=st.sampled_from(KINDS), share=st.floats(0, 0.7))
def test_at_some_cells_it_computes_what_it_computes_everywhere(
    seed: int, kind: str, share: float
) -> None:
    """Values and all gradients; on both sides of the share where it goes over to all cells."""
    torch.manual_seed(seed)
    layer = Adaptation(kind, student_channels=3, teacher_channels=4)
    randomise(layer)
    features = pyramid(3)
    cells = [torch.rand(x.shape[0], *x.shape[2:]) < share for x in features]
    upstream = [torch.randn(x.shape[0], 4, *x.shape[2:]) for x in features]
    results = []
    for where in (None, cells):
        maps = layer(features, where)
        kept = [m * c[:, None] for m, c in zip(maps, cells, strict=True)]
        loss = sum(((k * u).sum() for k, u in zip(kept, upstream, strict=True)), torch.zeros(()))
        gradients = torch.autograd.grad(
            loss, [*features, *layer.parameters()], materialize_grads=True
        )
        results.append([*kept, *gradients])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_without_any_cell_its_weights_still_get_a_gradient() -> None:
    layer = Adaptation("conv3x3", student_channels=3, teacher_channels=4)
    features = pyramid(3)
    none = [torch.zeros(x.shape[0], *x.shape[2:], dtype=torch.bool) for x in features]
    torch.stack([x.sum() for x in layer(features, none)]).sum().backward()
    for leaf in (*features, *layer.parameters()):
        assert leaf.grad is not None and not leaf.grad.any()


@pytest.mark.parametrize("kind", KINDS)
def test_equal_channels_start_as_the_identity(kind: str) -> None:
    features = pyramid(5)
    layer = Adaptation(kind, student_channels=5, teacher_channels=5)
    for before, after in zip(features, layer(features), strict=True):
        torch.testing.assert_close(before, after)


@pytest.mark.parametrize("kind", KINDS)
def test_other_channels_start_near_the_scale_of_the_features(kind: str) -> None:
    torch.manual_seed(0)
    layer = Adaptation(kind, student_channels=32, teacher_channels=48)
    assert layer.conv is not None
    result = layer.conv(torch.randn(1, 32, 40, 40))
    assert 0.8 < float(result.detach().std()) < 1.2


def test_none_passes_the_features_on_and_has_nothing_to_train() -> None:
    features = pyramid(5)
    layer = Adaptation("none", student_channels=5, teacher_channels=5)
    assert all(a is b for a, b in zip(layer(features), features, strict=True))
    assert list(layer.parameters()) == []


def test_none_refuses_other_channel_counts() -> None:
    message = "student has 128 and the teacher 256; use conv1x1 or conv3x3"
    with pytest.raises(ValueError, match=message):
        Adaptation("none", student_channels=128, teacher_channels=256)


def test_an_unknown_kind_is_refused_with_the_choices() -> None:
    message = re.escape("GID.ADAPTATION must be one of conv3x3, conv1x1, none, got 'linear'")
    with pytest.raises(ValueError, match=message):
        Adaptation("linear", student_channels=1, teacher_channels=1)
