"""What every loss on two pyramids promises: one suite, which each method's tests inherit.

A slow reference in float64 is plain numpy; its gradient is taken by central differences.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import numpy as np
import pytest
import torch
from torch import Tensor

from detectors.loop import AMP_DTYPES
from stage2_distill.methods.pyramids import Total, of_this_rank

Array = np.ndarray
Pyramid = Sequence[Array]
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
HALVES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
assert set(HALVES) == set(AMP_DTYPES)

# Own grids of three records, of levels of 5x6, 3x3 and one position.
OWN_SIZES = [[(5, 6), (3, 3), (1, 1)], [(4, 6), (2, 3), (1, 1)], [(5, 3), (3, 2), (1, 1)]]


@dataclass(frozen=True, kw_only=True)
class Case:
    """Two pyramids: L tensors (N, C, H_l, W_l) each, and the positions of the N records."""

    student: list[Tensor]
    teacher: list[Tensor]
    inside: list[Tensor]

    def images(self, chosen: slice | list[int]) -> Case:
        """The same of some of the images."""
        sides = (self.student, self.teacher, self.inside)
        student, teacher, inside = ([level[chosen] for level in side] for side in sides)
        return Case(student=student, teacher=teacher, inside=inside)

    def to(self, *args: object) -> Case:
        """Both pyramids in another type; or everything on another device."""
        student = [level.to(*args) for level in self.student]
        teacher = [level.to(*args) for level in self.teacher]
        device = student[0].device
        inside = [level.to(device) for level in self.inside]
        return Case(student=student, teacher=teacher, inside=inside)


def make_case(seed: int = 0, channels: int = 3, own_sizes: Sequence[object] = OWN_SIZES) -> Case:
    """Random features, float64, of records that fill the batch's grid or do not."""
    rng = np.random.default_rng(seed)
    grids = [tuple(np.max(sizes, axis=0)) for sizes in zip(*own_sizes, strict=True)]

    def pyramid() -> list[Tensor]:
        shapes = [(len(own_sizes), channels, *grid) for grid in grids]
        return [torch.from_numpy(rng.normal(0.5, 1.0, shape)) for shape in shapes]

    inside = [torch.zeros(len(own_sizes), 1, *grid, dtype=torch.bool) for grid in grids]
    for image, sizes in enumerate(own_sizes):
        for level, (height, width) in zip(inside, sizes, strict=True):
            level[image, :, :height, :width] = True
    return Case(student=pyramid(), teacher=pyramid(), inside=inside)


def gradients(loss: Tensor, of: Sequence[Tensor]) -> list[Tensor]:
    """Of a loss, with zeros where it does not depend on something."""
    found = torch.autograd.grad(loss, list(of), allow_unused=True)
    return [torch.zeros_like(x) if one is None else one for one, x in zip(found, of, strict=True)]


def numeric_gradients(function: Callable[[Pyramid], float], at: Pyramid) -> list[Array]:
    """Central differences of a function of a pyramid."""
    step, results = 1e-5, []
    at = [level.copy() for level in at]
    for level in at:
        result = np.zeros_like(level)
        for place in np.ndindex(level.shape):
            value, ends = level[place], []
            for moved in (value + step, value - step):
                level[place] = moved
                ends.append(function(at))
            level[place] = value
            result[place] = (ends[0] - ends[1]) / (2 * step)
        results.append(result)
    return results


class LossContract:
    """Promises of a loss on pyramids; a subclass says which, and gives its slow reference."""

    doubling: Callable[[int], float] = staticmethod(lambda positions: 1.0)
    # Relative, for losses without layers that autocast computes in half precision.
    half_tolerance = 1e-6

    def loss(self, case: Case, total: Total = of_this_rank) -> Tensor:
        """The loss of a case."""
        raise NotImplementedError

    def reference(self, student: Pyramid, teacher: Pyramid, inside: Pyramid) -> float:
        """The same, slowly."""
        raise NotImplementedError

    def layers(self) -> list[Tensor]:
        """Parameters that the loss trains."""
        return []

    @pytest.mark.parametrize("own_sizes", [OWN_SIZES, OWN_SIZES[:1], OWN_SIZES[1:2] * 2])
    def test_equals_the_reference(self, own_sizes: list[object]) -> None:
        case = make_case(own_sizes=own_sizes)
        student, teacher, inside = (
            [level.numpy() for level in side] for side in (case.student, case.teacher, case.inside)
        )
        leaves = [level.requires_grad_() for level in case.student]
        loss = self.loss(case)
        assert loss.dtype == torch.float64
        assert loss.item() == pytest.approx(self.reference(student, teacher, inside), rel=1e-9)
        wanted = numeric_gradients(lambda at: self.reference(at, teacher, inside), student)
        for found, level in zip(gradients(loss, leaves), wanted, strict=True):
            np.testing.assert_allclose(found, level, rtol=1e-5, atol=1e-7)

    def test_gives_the_teacher_no_gradient(self) -> None:
        case = make_case()
        for level in chain(case.student, case.teacher):
            level.requires_grad_()
        found = torch.autograd.grad(self.loss(case), case.teacher, allow_unused=True)
        assert found == (None,) * len(case.teacher)

    @pytest.mark.parametrize("side", ["student", "teacher"])
    def test_what_is_outside_changes_no_bit(self, side: str) -> None:
        case = make_case().to(torch.float32)
        filled = [
            level.where(positions, torch.full((), 1e3))
            for level, positions in zip(getattr(case, side), case.inside, strict=True)
        ]
        assert any(not positions.all() for positions in case.inside)
        results = []
        for one in (case, replace(case, **{side: filled})):
            leaves = [level.clone().requires_grad_() for level in one.student]
            loss = self.loss(replace(one, student=leaves))
            results.append([loss, *gradients(loss, [*leaves, *self.layers()])])
        for plain, garbage in zip(*results, strict=True):
            assert torch.equal(plain, garbage)
        for gradient, positions in zip(results[1][1:], case.inside, strict=False):
            assert not gradient.masked_fill(positions, 0.0).any()

    def test_doubling_the_batch_changes_no_loss(self) -> None:
        """By more than `doubling` says, of levels with some number of positions."""
        case = make_case(own_sizes=OWN_SIZES[:1])
        doubled = case.images([0, 0])
        for level in range(len(case.student)):
            one, two = (
                Case(
                    student=c.student[level : level + 1],
                    teacher=c.teacher[level : level + 1],
                    inside=c.inside[level : level + 1],
                )
                for c in (case, doubled)
            )
            factor = self.doubling(int(one.inside[0].sum()))
            assert self.loss(two).item() == pytest.approx(
                factor * self.loss(one).item(), rel=1e-5, abs=1e-12
            )

    def test_ranks_that_count_together_have_the_loss_of_all(self) -> None:
        case = make_case()
        ranks = [case.images(slice(0, 1)), case.images(slice(1, 3))]
        counted: list[list[Tensor]] = [[], []]
        for rank, own in zip(ranks, counted, strict=True):
            self.loss(rank, lambda count, own=own: own.append(count) or count)
        means = [(a + b) / 2 for a, b in zip(*counted, strict=True)]
        losses = []
        for rank in ranks:
            left = iter(means)
            losses.append(self.loss(rank, lambda count, left=left: next(left)).item())
        assert sum(losses) / 2 == pytest.approx(self.loss_of_ranks(case, ranks), rel=1e-6)

    def loss_of_ranks(self, case: Case, ranks: Sequence[Case]) -> float:
        """What ranks must have on the average: the loss of all images."""
        return self.loss(case).item()

    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("half", HALVES)
    def test_half_features_are_compared_in_float32(self, half: str, device: str) -> None:
        case = make_case(own_sizes=[[(16, 20), (8, 10)], [(12, 20), (6, 10)]])
        case = case.to(HALVES[half]).to(device)
        full = self.loss(case.to(torch.float32)).item()
        leaves = [level.requires_grad_() for level in case.student]
        with torch.autocast(device, dtype=HALVES[half]):
            loss = self.loss(case)
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(full, rel=self.half_tolerance)
        assert all(one.isfinite().all() for one in gradients(loss, [*leaves, *self.layers()]))

    def test_nothing_is_read_back_to_the_host(self) -> None:
        """Tensors without values refuse to be looked at, as boolean indexing does too."""
        case = make_case().to(torch.float32).to("meta")
        leaves = [level.requires_grad_() for level in case.student]
        loss = self.loss(case)
        assert loss.shape == () and loss.is_meta
        gradients(loss, leaves)

    def test_no_images_have_no_loss(self) -> None:
        case = make_case().to(torch.float32).images(slice(0, 0))
        leaves = [level.requires_grad_() for level in case.student]
        loss = self.loss(case)
        assert loss.item() == 0
        assert not any(one.any() for one in gradients(loss, [*leaves, *self.layers()]))

    def test_positions_that_are_no_mask_are_refused_in_one_line(self) -> None:
        case = make_case()
        with pytest.raises(ValueError, match=r"`inside` of torch\.bool, got torch\.float32$"):
            self.loss(replace(case, inside=[level.float() for level in case.inside]))

    def test_pyramids_that_differ_are_refused_in_one_line(self) -> None:
        case = make_case()
        for wrong in (
            replace(case, teacher=case.teacher[:-1]),
            replace(case, student=[level[:, :2] for level in case.student]),
            replace(case, inside=[level[..., :1] for level in case.inside]),
        ):
            with pytest.raises(ValueError, match=r"^expected student and teacher .*$"):
                self.loss(wrong)
