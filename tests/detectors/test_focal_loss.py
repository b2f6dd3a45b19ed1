"""The focal loss in parts is fvcore's, to the last bit, and keeps its inputs alone."""

from __future__ import annotations

import pytest
import torch
from fvcore.nn import sigmoid_focal_loss

from detectors import focal_loss as module
from detectors.focal_loss import focal_loss


def case(shape: tuple[int, ...], dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(1)
    logits = (torch.randn(shape) * 6).to(dtype)
    logits.view(-1)[::7] = 80.0  # where a sigmoid saturates
    return logits, (torch.rand(shape) < 0.1).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"alpha": 0.25, "gamma": 1.5}])
@pytest.mark.parametrize("shape", [(0, 5), (1, 3), (37, 11), (1000, 9)])
def test_values_and_gradients_are_those_of_fvcore(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    options: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_PART", 256)
    logits, labels = case(shape, dtype)
    found = []
    for function in (focal_loss, sigmoid_focal_loss):
        leaf = logits.clone().requires_grad_()
        loss = function(leaf, labels, reduction="sum", **options)
        (3.0 * loss).backward()
        found.append((loss.detach(), leaf.grad))
    (ours, our_gradient), (theirs, their_gradient) = found
    assert torch.equal(ours, theirs) and ours.dtype == theirs.dtype
    assert torch.equal(our_gradient, their_gradient)


def test_until_the_backward_pass_the_inputs_alone_are_kept() -> None:
    logits, labels = case((1000, 9), torch.float32)
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    leaf = logits.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        ours = focal_loss(leaf, labels, alpha=0.25, reduction="sum")
        assert sum(kept.values()) == leaf.nbytes + labels.nbytes
        kept.clear()
        theirs = sigmoid_focal_loss(leaf, labels, alpha=0.25, reduction="sum")
    assert sum(kept.values()) == 8 * leaf.nbytes
    assert torch.equal(ours, theirs)


def test_other_reductions_are_fvcore_s_own() -> None:
    logits, labels = case((4, 3), torch.float32)
    for reduction in ("none", "mean"):
        one, other = (
            function(logits, labels, reduction=reduction)
            for function in (focal_loss, sigmoid_focal_loss)
        )
        assert torch.equal(one, other)


def test_inputs_that_are_not_contiguous_have_their_own_gradients() -> None:
    logits, labels = case((6, 8), torch.float32)
    leaf = logits.clone().requires_grad_()
    focal_loss(leaf.T, labels.T, reduction="sum").backward()
    other = logits.clone().requires_grad_()
    sigmoid_focal_loss(other.T, labels.T, reduction="sum").backward()
    assert torch.equal(leaf.grad, other.grad)
