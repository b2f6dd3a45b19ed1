"""Restoring the teacher from a masked student, beside plain loops."""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dataset.views.seeds import draw
from stage2_distill.methods.layers import per_level
from stage2_distill.methods.mgd import FeatureGenerator, mgd_loss, mgd_masks
from stage2_distill.methods.pyramids import Total, of_this_rank
from tests.stage2_distill.methods.contract import (
    Array,
    Case,
    LossContract,
    Pyramid,
    make_case,
)

CHANNELS = 3
CPU = torch.device("cpu")
WHO: dict[str, Any] = {"seed": 1, "image_ids": [4, 9], "views": [0, 3], "iteration": 5}


def convolved(level: Array, conv: nn.Module) -> Array:
    """A 3x3 convolution of one image (C, H, W), zeros around it."""
    weight, bias = (x.detach().double().numpy() for x in (conv.weight, conv.bias))
    height, width = level.shape[1:]
    padded = np.pad(level, ((0, 0), (1, 1), (1, 1)))
    result = np.empty((len(weight), height, width))
    for y, x in np.ndindex(height, width):
        patch = padded[:, y : y + 3, x : x + 3]
        result[:, y, x] = (weight * patch).sum((1, 2, 3)) + bias
    return result


def reference(
    student: Pyramid, teacher: Pyramid, inside: Pyramid, kept: Pyramid, generators: nn.ModuleList
) -> float:
    """Each record alone, on its own grid."""
    loss = 0.0
    for s, t, own, left, generator in zip(student, teacher, inside, kept, generators, strict=True):
        for n in range(len(s)):
            height, width = own[n, 0].any(1).sum(), own[n, 0].any(0).sum()
            masked = np.where(left[n], s[n], 0.0)[:, :height, :width]
            hidden = np.maximum(convolved(masked, generator.first), 0.0)
            difference = convolved(hidden, generator.second) - t[n, :, :height, :width]
            loss += (difference**2).sum() / len(s)
    return loss


class TestLoss(LossContract):
    half_tolerance = 0.01

    @pytest.fixture(autouse=True)
    def _make(self) -> None:
        torch.manual_seed(3)
        self.generators = per_level(lambda: FeatureGenerator(CHANNELS), levels=3)

    def kept(self, case: Case) -> list[Tensor]:
        """One mask for all images, so that it follows them through cuts and copies of a batch."""
        sizes = [level.shape[2:] for level in case.student]
        masks = mgd_masks(0, [1], [0], 2, sizes, 0.5, case.student[0].device)
        return [mask.expand(len(case.student[0]), -1, -1, -1) for mask in masks]

    def loss(self, case: Case, total: Total = of_this_rank) -> Tensor:
        like = case.teacher[0]
        dtype = torch.promote_types(like.dtype, torch.float32)
        generators = self.generators[: len(case.student)].to(like.device, dtype)
        return mgd_loss(
            case.student, case.teacher, case.inside, self.kept(case), generators, total=total
        )

    def reference(self, student: Pyramid, teacher: Pyramid, inside: Pyramid) -> float:
        case = Case(student=list(map(torch.from_numpy, student)), teacher=[], inside=[])
        kept = [mask.numpy() for mask in self.kept(case)]
        return reference(student, teacher, inside, kept, self.generators)

    def layers(self) -> list[Tensor]:
        return list(self.generators.parameters())

    def test_what_is_removed_has_no_gradient(self) -> None:
        case = make_case()
        student = [level.requires_grad_() for level in case.student]
        gradients = torch.autograd.grad(self.loss(case), student)
        for gradient, mask in zip(gradients, self.kept(case), strict=True):
            assert not gradient.masked_fill(mask, 0.0).any()
        assert gradients[0].any()


@pytest.mark.parametrize("share", [0.0, 0.45, 0.65, 1.0])
def test_a_mask_removes_its_share(share: float) -> None:
    masks = mgd_masks(**WHO, sizes=[(200, 300), (100, 150)], share=share, device=CPU)
    assert [mask.shape for mask in masks] == [(2, 1, 200, 300), (2, 1, 100, 150)]
    for mask in masks:
        # Of 15,000 positions or more: five deviations of what independent draws give.
        removed = (~mask).double().mean((1, 2, 3))
        assert torch.allclose(removed, torch.tensor(share).double(), atol=0.015)


def test_neighbours_are_drawn_independently() -> None:
    (mask,) = mgd_masks(**WHO, sizes=[(300, 300)], share=0.5, device=CPU)
    signs = 2.0 * mask.double() - 1.0
    assert abs((signs[..., 1:] * signs[..., :-1]).mean()) < 0.015
    assert abs((signs[..., 1:, :] * signs[..., :-1, :]).mean()) < 0.015


def test_masks_are_draws_of_the_hash_that_views_use() -> None:
    """So they can be drawn again: a training that goes on after an interruption does."""
    masks = mgd_masks(**WHO, sizes=[(4, 5), (2, 3)], share=0.65, device=CPU)
    for level, mask in enumerate(masks):
        for n, (image, view) in enumerate(zip(WHO["image_ids"], WHO["views"], strict=True)):
            text = f"{WHO['seed']} {image} {view} {WHO['iteration']} {level}"
            key = np.frombuffer(blake2b(text.encode(), digest_size=8).digest(), "<u8")
            for y, x in np.ndindex(mask.shape[2:]):
                below_one = (int(draw(key, y * 2**16 + x + 1)[0]) % 2**31) / 2**31
                assert mask[n, 0, y, x] == (below_one >= 0.65)


@pytest.mark.gpu
def test_devices_draw_alike() -> None:
    sizes = [(50, 60), (25, 30)]
    there = mgd_masks(**WHO, sizes=sizes, share=0.65, device=torch.device("cuda"))
    here = mgd_masks(**WHO, sizes=sizes, share=0.65, device=CPU)
    assert all(torch.equal(a.cpu(), b) for a, b in zip(there, here, strict=True))


def test_a_mask_depends_on_neither_the_batch_nor_its_grid() -> None:
    (together,) = mgd_masks(**WHO, sizes=[(30, 40)], share=0.65, device=CPU)
    (alone,) = mgd_masks(1, [9], [3], 5, [(20, 33)], 0.65, CPU)
    assert torch.equal(together[1:, :, :20, :33], alone)


@pytest.mark.parametrize(
    "other", [{"seed": 2}, {"image_ids": [5, 8]}, {"views": [1, 2]}, {"iteration": 6}]
)
def test_every_key_changes_the_masks(other: dict[str, Any]) -> None:
    size, device = [(20, 20)] * 2, CPU
    first, second = mgd_masks(**WHO, sizes=size, share=0.5, device=device)
    (changed, _) = mgd_masks(**{**WHO, **other}, sizes=size, share=0.5, device=device)
    for mask in (changed[0], changed[1], second[0], first[1]):
        # Independent masks agree in half of the 400 positions, give or take 10.
        assert 130 < (mask ^ first[0]).sum() < 270


def test_no_global_random_number_is_drawn() -> None:
    before = torch.get_rng_state()
    mgd_masks(**WHO, sizes=[(20, 20)], share=0.5, device=CPU)
    assert torch.equal(torch.get_rng_state(), before)
