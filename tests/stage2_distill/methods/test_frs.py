"""Distillation by feature richness: against loops, and what takes no part."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from stage2_distill.methods.frs import FrsAdaptation, feature_richness, frs_losses, ramp_factor
from tests.stage2_distill import reference
from tests.stage2_distill.methods.comparing import (
    GARBAGE,
    arrays,
    assert_like_reference,
    in_float32,
    mean_over_ranks,
    on,
    part,
    set_parameters,
    spoilt,
)
from tests.stage2_distill.methods.contract import (
    DEVICES,
    HALVES,
    OWN_SIZES,
    Array,
    Pyramid,
    gradients,
    make_case,
)

CHANNELS, ANCHORS, CLASSES = 3, 2, 4
NAMES = ("feature", "cls")


def slow_losses(
    student: Pyramid,
    logits: Array,
    teacher: Pyramid,
    probabilities: Array,
    inside: Pyramid,
) -> dict[str, float]:
    """The losses of the paper, one position after another."""
    found, start = dict.fromkeys(NAMES, 0.0), 0
    for mine, theirs, there in zip(student, teacher, inside, strict=True):
        height, width = there.shape[2:]
        feature = cls = weight = 0.0
        for n, y, x in zip(*np.nonzero(there[:, 0]), strict=True):
            first = start + (y * width + x) * ANCHORS
            m = probabilities[n, first : first + ANCHORS].max()
            weight += m
            feature += m * ((mine[n, :, y, x] - theirs[n, :, y, x]) ** 2).sum()
            for row in range(first, first + ANCHORS):
                for logit, wanted in zip(logits[n, row], probabilities[n, row], strict=True):
                    cls += m * (math.log1p(math.exp(logit)) - wanted * logit)
        start += height * width * ANCHORS
        if weight:
            found["feature"] += feature / weight
            found["cls"] += cls / weight
    return found


def batch(seed: int = 0) -> dict[str, Any]:
    """Arguments of `frs_losses` for three images of different sizes, in float64."""
    case, rng = make_case(seed, CHANNELS), np.random.default_rng(seed)
    anchors = ANCHORS * sum(level[0].numel() for level in case.inside)
    logits, wanted = torch.from_numpy(rng.normal(0, 2, (2, len(OWN_SIZES), anchors, CLASSES)))
    return vars(case) | {"logits": logits, "probabilities": wanted.sigmoid()}


def adaptation(channels: int = CHANNELS) -> FrsAdaptation:
    """Of three levels, far from zero and in float64."""
    layer = FrsAdaptation(3, student_channels=CHANNELS, teacher_channels=channels)
    set_parameters(layer, seed=1)
    return layer.double()


def anchors_inside(inside: Sequence[Tensor]) -> Tensor:
    """(N, R, 1) bool, whether an anchor's position is inside."""
    positions = torch.cat([level.flatten(1) for level in inside], dim=1)
    return positions.repeat_interleave(ANCHORS, dim=1)[..., None]


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_those_of_the_loops(name: str) -> None:
    given = batch()
    fixed = arrays(given["teacher"], given["probabilities"], given["inside"])

    def loss(leaves: Sequence[Tensor]) -> Tensor:
        return frs_losses(**given | {"student": leaves[:-1], "logits": leaves[-1]})[name]

    def slow(leaves: Pyramid) -> float:
        return slow_losses(leaves[:-1], leaves[-1], *fixed)[name]

    assert_like_reference(loss, slow, [*given["student"], given["logits"]])


def test_a_two_stage_teacher_gives_its_objectness() -> None:
    given = batch()
    for key in ("logits", "probabilities"):
        given[key] = given[key][..., :1]
    order = ("student", "logits", "teacher", "probabilities", "inside")
    slow = slow_losses(*arrays(*(given[key] for key in order)))
    assert {k: v.item() for k, v in frs_losses(**given).items()} == pytest.approx(slow)


def test_richness_is_the_best_of_anchors_and_classes() -> None:
    probabilities = torch.zeros(1, 4, 2)
    probabilities[0, 3, 1], probabilities[0, 2, 0], probabilities[0, 0, 1] = 0.75, 0.5, 0.25
    (found,) = feature_richness(probabilities, [torch.ones(1, 1, 1, 2, dtype=torch.bool)])
    assert found.tolist() == [[[[0.25, 0.75]]]]


def test_the_teacher_gets_no_gradient() -> None:
    given = batch()
    constants = [*given["teacher"], given["probabilities"]]
    trained = [*given["student"], given["logits"]]
    for leaf in constants + trained:
        leaf.requires_grad_()
    sum(frs_losses(**given).values()).backward()
    assert all(leaf.grad is None for leaf in constants)
    assert all(leaf.grad.any() for leaf in trained)


def test_a_teacher_that_is_sure_of_nothing_gives_zero_and_a_gradient() -> None:
    given = batch()
    given["probabilities"] = torch.zeros_like(given["probabilities"])
    trained = [leaf.requires_grad_() for leaf in (*given["student"], given["logits"])]
    losses = frs_losses(**given)
    assert [x.item() for x in losses.values()] == [0.0, 0.0]
    for gradient in torch.autograd.grad(sum(losses.values()), trained):
        assert not gradient.any()


def test_what_is_outside_changes_neither_loss_nor_gradient() -> None:
    """The adaptation is 3x3, so what it reads outside would get in as well."""
    given = batch()
    layer = adaptation()
    there = anchors_inside(given["inside"])
    other = {
        **given,
        **{side: spoilt(given[side], given["inside"]) for side in ("student", "teacher")},
        **{key: torch.where(there, given[key], GARBAGE) for key in ("logits", "probabilities")},
    }
    results = []
    for one in (given, other):
        trained = [leaf.requires_grad_() for leaf in (*one["student"], one["logits"])]
        adapted = layer(one["student"], one["inside"])
        losses = list(frs_losses(**one | {"student": adapted}).values())
        results.append([*losses, *gradients(sum(losses), [*trained, *layer.parameters()])])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_a_record_is_adapted_as_if_it_were_alone() -> None:
    given = batch()
    layer = adaptation(5)
    found = layer(spoilt(given["student"], given["inside"]), given["inside"])
    for image, sizes in enumerate(OWN_SIZES):
        for level, (height, width) in enumerate(sizes):
            conv = layer.convs[level]
            own = given["student"][level][image, :, :height, :width].numpy()
            weight, bias = conv.weight.detach().numpy(), conv.bias.detach().numpy()
            wanted = np.zeros(found[level][image].shape)
            wanted[:, :height, :width] = reference.convolve(own, weight, bias)
            np.testing.assert_allclose(found[level][image].detach().numpy(), wanted, atol=1e-12)


def test_no_images_have_no_loss() -> None:
    assert [x.item() for x in frs_losses(**part(batch(), slice(0, 0))).values()] == [0.0, 0.0]


def test_a_batch_and_its_double_have_one_loss() -> None:
    given = batch()
    doubled = part(given, [0, 1, 2, 0, 1, 2])
    once, twice = frs_losses(**given), frs_losses(**doubled)
    torch.testing.assert_close(twice, once)


@pytest.mark.parametrize("name", NAMES)
def test_ranks_with_the_mean_of_their_sums_have_the_mean_of_all_images(name: str) -> None:
    given = batch()
    ranks = [part(given, slice(0, 1)), part(given, slice(1, 3))]
    mean = mean_over_ranks([lambda t, r=r: frs_losses(**r, total=t)[name] for r in ranks])
    torch.testing.assert_close(mean, frs_losses(**given)[name])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("half", HALVES)
def test_half_scores_are_compared_in_float32(half: str, device: str) -> None:
    given = on(device, in_float32(batch()))
    narrow = {key: given[key].to(HALVES[half]) for key in ("logits", "probabilities")}
    plain = frs_losses(**given | {key: scores.float() for key, scores in narrow.items()})
    torch.testing.assert_close(frs_losses(**given | narrow), plain, rtol=1e-5, atol=0)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("half", HALVES)
def test_losses_are_float32_and_near_under_autocast(half: str, device: str) -> None:
    given, layer = on(device, in_float32(batch())), adaptation().float().to(device)
    results = []
    for enabled in (False, True):
        with torch.autocast(device, dtype=HALVES[half], enabled=enabled):
            adapted = layer(given["student"], given["inside"])
            results.append(frs_losses(**given | {"student": adapted}))
    assert all(loss.dtype == torch.float32 for loss in results[1].values())
    torch.testing.assert_close(results[1], results[0], rtol=2e-2, atol=0)


def test_nothing_is_read_back_to_the_host() -> None:
    given = on("meta", batch())
    given["logits"].requires_grad_()
    given["student"] = adaptation().to("meta")(given["student"], given["inside"])
    torch.stack(list(frs_losses(**given).values())).sum().backward()


def test_pyramids_of_different_channels_are_refused() -> None:
    given = batch()
    given["teacher"] = [level[:, :1] for level in given["teacher"]]
    with pytest.raises(ValueError, match="adapt the student's channels first"):
        frs_losses(**given)


def test_anchors_of_other_levels_are_refused() -> None:
    given = batch()
    for key in ("logits", "probabilities"):
        given[key] = given[key][:, :-1]
    with pytest.raises(ValueError, match="each of the 40 positions of all levels, got 79 anchors"):
        frs_losses(**given)


def test_the_adaptation_starts_as_the_identity_where_channels_agree() -> None:
    given = batch()
    layer = FrsAdaptation(3, student_channels=CHANNELS, teacher_channels=CHANNELS).double()
    found = layer(given["student"], given["inside"])
    for level, there, adapted in zip(given["student"], given["inside"], found, strict=True):
        assert torch.equal(adapted, level.masked_fill(~there, 0.0))


def test_the_factor_rises_from_zero_to_one() -> None:
    assert [ramp_factor(i, 4) for i in range(6)] == [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]
    assert ramp_factor(0, 0) == 1.0
