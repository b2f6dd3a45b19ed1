"""Focal and global distillation: against loops, which cells count, and what takes no part."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from stage2_distill.methods import fgd
from stage2_distill.methods.fgd import (
    ContextBlock,
    ContextBlocks,
    attention,
    cell_weights,
    fgd_losses,
)
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
    Array,
    Pyramid,
    gradients,
    make_case,
)

CHANNELS, STRIDES, TEMPERATURE = 6, (8, 16, 48), 0.5
NAMES = ("foreground", "background", "attention", "relation")
# Of three images: overlapping ones, one that the border cuts, and a small one; none; two that share
# a corner.
BOXES = (
    [
        [3.0, 4.0, 17.0, 20.0],
        [9.0, 1.0, 30.0, 12.0],
        [40.0, 25.0, 48.0, 32.0],
        [20.0, 27.0, 20.5, 28],
    ],
    [],
    [[0.0, 0.0, 7.5, 7.5], [0.0, 2.0, 24.0, 30.0]],
)


def softmax(values: list[float]) -> list[float]:
    """Of numbers that need no care."""
    powers = [math.exp(value) for value in values]
    return [power / sum(powers) for power in powers]


def slow_attention(cells: Array) -> tuple[Array, Array]:
    """Attentions (P,) and (C,) of the P positions (P, C) of an image."""
    size = np.abs(cells)
    spatial = softmax([size[p].mean() / TEMPERATURE for p in range(size.shape[0])])
    channel = softmax([size[:, c].mean() / TEMPERATURE for c in range(size.shape[1])])
    return np.array(spatial) * size.shape[0], np.array(channel) * size.shape[1]


def slow_context(cells: Array, weights: Mapping[str, Array], block: str) -> Array:
    """What a block adds to the positions (P, C) of an image: (C,)."""
    focus = softmax([float(cell @ weights[f"{block}.focus.weight"][0]) for cell in cells])
    context = sum(share * cell for share, cell in zip(focus, cells, strict=True))
    layer = {name: weights[f"{block}.transform.{name}"] for name in _LAYERS}
    hidden = layer["0.weight"] @ context + layer["0.bias"]
    hidden = (hidden - hidden.mean()) / math.sqrt(hidden.var() + 1e-5)
    hidden = np.maximum(hidden * layer["1.weight"] + layer["1.bias"], 0.0)
    return layer["3.weight"] @ hidden + layer["3.bias"]


_LAYERS = [f"{number}.{kind}" for number in (0, 1, 3) for kind in ("weight", "bias")]


def slow_cells(places: Array, boxes: Sequence[Sequence[float]], stride: int) -> tuple[Array, Array]:
    """Weights of foreground and background at the positions (P, 2) y x of an image."""
    foreground = np.zeros(len(places))
    for x1, y1, x2, y2 in boxes:
        left, right = math.floor(x1 / stride), math.ceil(x2 / stride)
        top, bottom = math.floor(y1 / stride), math.ceil(y2 / stride)
        weight = 1.0 / ((right - left + 1) * (bottom - top + 1))
        for number, (y, x) in enumerate(places):
            if top <= y <= bottom and left <= x <= right:
                foreground[number] = max(foreground[number], weight)
    free = foreground == 0
    return foreground, free / max(1, free.sum())


def slow_losses(
    student: Pyramid,
    teacher: Pyramid,
    inside: Pyramid,
    weights: Mapping[str, Array],
) -> dict[str, float]:
    """The losses of the paper, image by image and position by position."""
    found = dict.fromkeys(NAMES, 0.0)
    for level, stride in enumerate(STRIDES):
        for n, boxes in enumerate(BOXES):
            places = np.argwhere(inside[level][n, 0])
            mine, theirs = (side[level][n][:, *places.T].T for side in (student, teacher))
            (spatial, channel), (spatial_t, channel_t) = map(slow_attention, (mine, theirs))
            cells = slow_cells(places, boxes, stride)
            added = slow_context(mine, weights, f"student.{level}")
            added_t = slow_context(theirs, weights, f"teacher.{level}")
            for p, c in np.ndindex(mine.shape):
                error = spatial_t[p] * channel_t[c] * (mine[p, c] - theirs[p, c]) ** 2
                found["foreground"] += cells[0][p] * error
                found["background"] += cells[1][p] * error
                found["relation"] += (mine[p, c] + added[c] - theirs[p, c] - added_t[c]) ** 2
            found["attention"] += np.abs(spatial - spatial_t).sum()
            found["attention"] += np.abs(channel - channel_t).sum()
    return {name: value / len(BOXES) for name, value in found.items()}


def batch(seed: int = 0) -> dict[str, Any]:
    """Arguments of `fgd_losses` for three images of different sizes, in float64."""
    case = make_case(seed, CHANNELS)
    case.student[0][:, 1] = 0.0  # a channel that is dead
    # Where there is no box, something that would count.
    boxes = torch.tensor([0.0, 0.0, 40.0, 30.0], dtype=torch.float64).repeat(3, 5, 1)
    valid = torch.zeros(3, 5, dtype=torch.bool)
    for image, found in enumerate(BOXES):
        valid[image, : len(found)] = True
        boxes[image, : len(found)] = torch.tensor(found, dtype=torch.float64).reshape(-1, 4)
    return vars(case) | {"boxes": boxes, "valid": valid}


def blocks_of() -> ContextBlocks:
    """Blocks that add something, in float64."""
    blocks = ContextBlocks(len(STRIDES), CHANNELS)
    set_parameters(blocks, seed=1)
    return blocks.double()


def losses_of(given: dict[str, Any], blocks: ContextBlocks, **more: Any) -> dict[str, Tensor]:
    """The losses at the temperature and strides of these tests."""
    return fgd_losses(**given, blocks=blocks, strides=STRIDES, temperature=TEMPERATURE, **more)


class Losses(nn.Module):
    """The losses as a module, whose parameters torch can replace."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = blocks_of()

    def forward(self, given: dict[str, Any]) -> dict[str, Tensor]:
        return losses_of(given, self.blocks)


@pytest.mark.parametrize("name", NAMES)
def test_losses_and_gradients_are_those_of_the_loops(name: str) -> None:
    """Gradients of the student and of both sides' blocks."""
    given, module = batch(), Losses()
    names = [name for name, _ in module.named_parameters()]
    teacher, inside = arrays(given["teacher"], given["inside"])

    def loss(leaves: Sequence[Tensor]) -> Tensor:
        replaced = dict(zip(names, leaves[len(STRIDES) :], strict=True))
        arguments = given | {"student": leaves[: len(STRIDES)]}
        return functional_call(module, replaced, (arguments,))[name]

    def slow(leaves: Pyramid) -> float:
        own = [key.removeprefix("blocks.") for key in names]
        weights = dict(zip(own, leaves[len(STRIDES) :], strict=True))
        return slow_losses(leaves[: len(STRIDES)], teacher, inside, weights)[name]

    # At 0 the magnitude of the dead channel has no slope along a direction.
    if name == "attention":
        given["student"][0][:, 1] = 0.25
    assert_like_reference(loss, slow, [*given["student"], *module.parameters()])


def test_a_dead_channel_gets_no_gradient_of_attention() -> None:
    given = batch()
    leaves = [level.requires_grad_() for level in given["student"]]
    (gradient, *_) = gradients(losses_of(given, blocks_of())["attention"], leaves)
    assert gradient.isfinite().all()
    assert not gradient[:, 1].any() and gradient[:, 0].any()


def weights_at(
    *boxes: list[float], size: tuple[int, int], own: tuple[int, int] | None = None
) -> tuple[list[list[float]], list[list[float]]]:
    """Weights of one image on a grid with a stride of 8; `own`: of its record."""
    there = torch.zeros(1, 1, *size, dtype=torch.bool)
    there[..., : (own or size)[0], : (own or size)[1]] = True
    found = torch.tensor(boxes).reshape(1, -1, 4)
    foreground, background = cell_weights(found, torch.ones(1, len(boxes)).bool(), ~there, 8)
    return foreground[0, 0].tolist(), background[0, 0].tolist()


def test_a_box_covers_the_cells_from_floor_to_ceiling() -> None:
    foreground, background = weights_at([9.0, 0.0, 15.5, 8.0], size=(3, 4))
    assert foreground == [[0, 0.25, 0.25, 0], [0, 0.25, 0.25, 0], [0, 0, 0, 0]]
    free = 0.125
    assert background == [[free, 0, 0, free], [free, 0, 0, free], [free] * 4]


def test_cells_are_counted_before_the_border_cuts_them() -> None:
    foreground, _ = weights_at([8.0, 0.0, 24.0, 0.0], size=(1, 3))
    assert foreground == [pytest.approx([0, 1 / 3, 1 / 3])]


def test_where_boxes_overlap_the_larger_weight_counts() -> None:
    large, small = [0.0, 0.0, 24.0, 0.0], [9.0, 0.0, 16.0, 0.0]
    wanted = [[0.25, 0.5, 0.5, 0.25]]
    assert weights_at(large, small, size=(1, 4))[0] == wanted
    assert weights_at(small, large, size=(1, 4))[0] == wanted


def test_cells_outside_of_the_record_are_neither_object_nor_background() -> None:
    foreground, background = weights_at([0.0, 0.0, 32.0, 0.0], size=(2, 5), own=(2, 2))
    assert foreground == [pytest.approx([0.2, 0.2, 0, 0, 0]), [0] * 5]
    assert background == [[0] * 5, [0.5, 0.5, 0, 0, 0]]


def test_an_image_full_of_objects_has_no_background() -> None:
    foreground, background = weights_at([0.0, 0.0, 16.0, 16.0], size=(2, 2))
    assert foreground == [pytest.approx([1 / 9] * 2)] * 2
    assert background == [[0, 0], [0, 0]]


@pytest.mark.parametrize("places", [0, 2])
def test_without_objects_everything_is_background(places: int) -> None:
    there = torch.ones(2, 1, 2, 2, dtype=torch.bool)
    none = torch.zeros(2, places, dtype=torch.bool)
    foreground, background = cell_weights(torch.ones(2, places, 4), none, ~there, 8)
    assert not foreground.any() and (background == 0.25).all()


def test_boxes_are_painted_in_parts_with_the_same_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given = batch()
    arguments = (given["boxes"], given["valid"], ~given["inside"][0], 8)
    whole = cell_weights(*arguments)
    monkeypatch.setattr(fgd, "_CHUNK_ELEMENTS", 2 * given["inside"][0].numel())
    assert all(torch.equal(*pair) for pair in zip(whole, cell_weights(*arguments), strict=True))


def test_attention_has_the_mean_one() -> None:
    given = batch()
    for level, there in zip(given["student"], given["inside"], strict=True):
        count = there.sum((2, 3), keepdim=True)
        spatial, channel = attention(level.masked_fill(~there, 0.0), ~there, count, TEMPERATURE)
        assert not spatial[~there].any()
        count = there.sum(dim=(1, 2, 3)).double()
        torch.testing.assert_close(spatial.sum(dim=(1, 2, 3)), count)
        torch.testing.assert_close(channel.mean(dim=(1, 2, 3)), torch.ones(3).double())


def test_a_block_adds_nothing_at_first_and_can_learn() -> None:
    block, features = ContextBlock(CHANNELS), torch.randn(2, CHANNELS, 3, 5)
    added = block(features, torch.zeros(2, 1, 3, 5, dtype=torch.bool))
    assert added.shape == (2, CHANNELS, 1, 1) and not added.any()
    (added - 1.0).square().sum().backward()
    assert block.transform[-1].weight.grad.any()


def test_the_teacher_gets_no_gradient_but_its_blocks_do() -> None:
    given, blocks = batch(), blocks_of()
    for leaf in (*given["teacher"], *given["student"]):
        leaf.requires_grad_()
    torch.stack(list(losses_of(given, blocks).values())).sum().backward()
    assert all(leaf.grad is None for leaf in given["teacher"])
    assert all(leaf.grad.any() for leaf in given["student"])
    for side in (blocks.student, blocks.teacher):
        # (The context of a level with one position is that position, whatever the focus.)
        assert all(one.grad is not None and one.grad.any() for one in side[:2].parameters())


def test_what_is_outside_changes_neither_loss_nor_gradient() -> None:
    given, blocks = batch(), blocks_of()
    other = {side: spoilt(given[side], given["inside"]) for side in ("student", "teacher")}
    other["boxes"] = torch.where(given["valid"][..., None], given["boxes"], GARBAGE)
    results = []
    for one in (given, given | other):
        leaves = [*(level.requires_grad_() for level in one["student"]), *blocks.parameters()]
        losses = torch.stack(list(losses_of(one, blocks).values()))
        results.append([losses, *gradients(losses.sum(), leaves)])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


def test_no_images_have_no_loss() -> None:
    losses = losses_of(part(batch(), slice(0, 0)), blocks_of())
    assert [x.item() for x in losses.values()] == [0.0] * 4


@pytest.mark.parametrize("half", HALVES)
def test_blocks_in_half_precision_add_nearly_the_same(half: str) -> None:
    given = in_float32(batch())
    full, rounded = (losses_of(given, blocks_of().to(one)) for one in (torch.float32, HALVES[half]))
    assert rounded["relation"].dtype == torch.float32
    torch.testing.assert_close(rounded, full, rtol=0.02, atol=0.0)


def test_a_batch_and_its_double_have_one_loss() -> None:
    given, blocks = batch(), blocks_of()
    doubled = losses_of(part(given, [0, 1, 2] * 2), blocks)
    torch.testing.assert_close(doubled, losses_of(given, blocks))


@pytest.mark.parametrize("name", NAMES)
def test_ranks_with_the_mean_of_their_images_have_the_mean_of_all(name: str) -> None:
    given, blocks = batch(), blocks_of()
    ranks = [part(given, slice(0, 1)), part(given, slice(1, 3))]
    mean = mean_over_ranks([lambda t, r=r: losses_of(r, blocks, total=t)[name] for r in ranks])
    torch.testing.assert_close(mean, losses_of(given, blocks)[name])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("half", HALVES)
def test_half_features_are_compared_in_float32(half: str, device: str) -> None:
    given, blocks = on(device, in_float32(batch())), blocks_of().float().to(device)
    narrow = {side: [x.to(HALVES[half]) for x in given[side]] for side in ("student", "teacher")}
    wide = {side: [x.float() for x in levels] for side, levels in narrow.items()}
    plain = losses_of(given | wide, blocks)
    with torch.autocast(device, dtype=HALVES[half]):
        mixed = losses_of(given | narrow, blocks)
    torch.testing.assert_close(mixed, plain, rtol=1e-5, atol=0)


def test_nothing_is_read_back_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    # Tensors without values have no autocast that could be disabled.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    given = on("meta", batch())
    given["student"][0].requires_grad_()
    losses = losses_of(given, blocks_of().to("meta"))
    torch.stack(list(losses.values())).sum().backward()


def test_pyramids_of_different_channels_are_refused() -> None:
    given = batch()
    given["teacher"] = [level[:, :1] for level in given["teacher"]]
    with pytest.raises(ValueError, match="adapt the student's channels first"):
        losses_of(given, blocks_of())
