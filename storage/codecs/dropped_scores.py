"""Sparse class scores: a few exact ones, and a model of all the others. Not a codec.

The M largest probabilities of a record keep a place of their own. All others of an anchor are
modelled by three things: their **mean**; the **profile** of the anchor's level and shape, which is
the mean of each class over all its positions; and a **power** that the profile is raised to.

The mean alone will not do. The response loss is linear in the teacher's probabilities, each
weighted by the student's logit, and teacher and student agree on which classes are the likelier
ones: with one value for all dropped classes of an anchor the loss is several percent off at 80
classes. The profile knows what is common to all positions, the power how peaked this one is.

Shape letters: n records, A anchors a position, K classes, L levels, S positions of all levels, R
anchors an image, M kept scores of a record, G = L * A groups of anchors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from storage.codecs.base import Codes, of_all, sigmoid, stacked
from storage.codecs.placing import Placing
from storage.codecs.quantising import TINY, pack_pairs, unpack_pairs
from storage.schema import Field, Geometry
from storage.signals import Signal

LAST_CODE = 255
PROFILE_STEPS = 16
POWER_STEP = 0.25
POWER_OFFSET = 4
NUM_POWERS = 16

_LOG = "0: none, else bound * 2 ** ((code - 255) / {})"


@dataclass(frozen=True, kw_only=True)
class ScoreGrid:
    """Where the scores of a record are: its geometry, and A and K of the signal."""

    geometry: Geometry
    num_anchors: int
    num_classes: int

    @classmethod
    def of(cls, signal: Signal, geometry: Geometry) -> ScoreGrid:
        """The grid of a signal of the kind `scores`."""
        anchors, classes = signal.sizes["anchors"], signal.sizes["classes"]
        return cls(geometry=geometry, num_anchors=anchors, num_classes=classes)

    @property
    def num_boxes(self) -> int:
        """R, the anchors of an image."""
        return self.geometry.num_positions * self.num_anchors


def rest_fields(grid: ScoreGrid, steps_per_octave: int) -> list[Field]:
    """Return the fields of the scores that are not kept.

    Raises:
        ValueError: more scores than an int32 index can count.
    """
    if grid.num_boxes * grid.num_classes >= 1 << 31:
        raise ValueError(f"{grid.geometry.name} has 2^31 class scores or more an image")
    groups = grid.geometry.num_levels, grid.num_anchors
    of_means, of_profile = (_LOG.format(steps) for steps in (steps_per_octave, PROFILE_STEPS))
    return [
        Field(
            "rest", (grid.num_boxes,), "uint8",
            attributes={
                "meaning": f"mean of the anchor's dropped probabilities; {of_means}",
                "anchors": "level, H, W, A",
            },
        ),
        Field(
            "power", (-(-grid.num_boxes // 2),), "uint8",
            attributes={
                "meaning": f"power = (bits - {POWER_OFFSET}) * {POWER_STEP}; two anchors a byte,"
                " the first in bits 0 to 3. The dropped probabilities of an anchor are in the"
                " proportions of its profile to the power of 1 + power",
                "anchors": "level, H, W, A",
            },
        ),
        Field(
            "profile", (*groups, grid.num_classes), "uint8",
            attributes={
                "meaning": "mean of the dropped probabilities of a class over the positions of a"
                f" level; {of_profile}",
                "axes": "level, A, class",
            },
        ),
        Field(
            "bound", (), "float32",
            attributes={
                "meaning": "largest dropped probability of the record",
                "limits": {"least": 0, "most": 1},
            },
        ),
    ]  # fmt: skip


def keep_largest(logits: Tensor, num_kept: int) -> tuple[Tensor, Tensor, Tensor]:
    """Part the M largest probabilities of each record from the others.

    Args:
        logits: (n, R, K) floating point.
        num_kept: M, at most R * K.

    Returns:
        (n, M) int64 flat indices anchor * K + class, ascending; (n, M) float32 probabilities; and
        those dropped, (n, R, K) float32, zero where one was kept.
    """
    probabilities = sigmoid(logits)
    index = _largest(probabilities, num_kept)
    flat = probabilities.view(len(logits), -1)
    value = flat.gather(1, index)
    flat.scatter_(1, index, 0.0)
    return index, value, probabilities


def encode_rest(
    dropped: Tensor, index: Tensor, grid: ScoreGrid, steps_per_octave: int
) -> dict[str, Tensor]:
    """Model the scores that are not kept.

    Args:
        dropped: (n, R, K) float32 probabilities, zero where one was kept.
        index: (n, M) int64, those kept.
        grid: of the records.
        steps_per_octave: fineness of the means.

    Returns:
        The four fields of `rest_fields`.
    """
    bound = dropped.amax(dim=(1, 2))  # [n]
    kept = torch.zeros_like(dropped, dtype=torch.bool)
    kept.flatten(1).scatter_(1, index, True)
    anchor = torch.div(index, grid.num_classes, rounding_mode="floor")
    num_kept = dropped.new_zeros(dropped.shape[:2]).scatter_add_(
        1, anchor, torch.ones_like(anchor, dtype=torch.float32)
    )
    num_dropped = grid.num_classes - num_kept  # [n, R]
    profile = _profiles(dropped, kept, grid)
    codes = _encode_logarithms(profile, bound, PROFILE_STEPS)
    power = _fit_powers(dropped, _decode_logarithms(codes, bound, PROFILE_STEPS), grid)
    mean = dropped.sum(dim=2) / num_dropped.clamp(min=1)
    packed = pack_pairs(power[:, None] - NUM_POWERS // 2)[:, 0]
    return {
        "rest": _encode_logarithms(mean, bound, steps_per_octave),
        "power": packed,
        "profile": codes,
        "bound": bound,
    }


def decode_scores(
    index: Tensor,
    value: Tensor,
    codes: Codes,
    grid: ScoreGrid,
    steps_per_octave: int,
) -> Tensor:
    """Put kept scores and the model of the others together.

    Args:
        index: (n, M) int64, in any order. value: (n, M) float32.
        codes: what `encode_rest` gave, `power` unpacked.
        grid, steps_per_octave: as there.

    Returns:
        (n, R, K) float32 probabilities.
    """
    bound, classes = codes["bound"], grid.num_classes
    profile = _decode_logarithms(codes["profile"], bound, PROFILE_STEPS)
    table = _shapes(profile).flatten(0, 2)  # [n * G * powers, K]
    rows = grid.geometry.num_levels * grid.num_anchors * NUM_POWERS
    row = torch.add(codes["power"], _groups(grid, table.device), alpha=NUM_POWERS)  # [n, R]
    # A power of 0 has the row in the middle of its group's.
    row += torch.arange(NUM_POWERS // 2, len(table), rows, device=table.device)[:, None]
    anchor = torch.div(index, classes, rounding_mode="floor")
    place = row.gather(1, anchor).mul_(classes).add_(index - anchor * classes)
    shape = table.take(place)  # [n, M]: what the model would say of the kept ones
    kept = torch.stack([torch.ones_like(shape), shape])
    sums = torch.zeros((2, *row.shape), device=row.device)
    num_dropped, share = (classes - sums.scatter_add_(2, anchor.expand_as(kept), kept)).unbind()
    mean = _decode_logarithms(codes["rest"], bound, steps_per_octave)
    level = mean.mul_(num_dropped).div_(share.clamp_(min=TINY))  # [n, R]
    dense = table.index_select(0, row.flatten()).view(*row.shape, classes)
    dense.mul_(level[:, :, None]).clamp_(max=bound[:, None, None])
    dense.view(len(dense), -1).scatter_(1, index, value)
    return dense


def unpack_power(packed: Tensor, num_boxes: int) -> Tensor:
    """The powers of `rest_fields`, (n, ceil(R / 2)) uint8 to (n, R) int16 in [-8, 8)."""
    return unpack_pairs(packed[:, None], num_boxes)[:, 0]


def place_rest(records: Sequence[Codes], placing: Placing, num_anchors: int) -> dict[str, Tensor]:
    """Bring the fields of `rest_fields` onto a grid, `power` unpacked.

    Beyond a record's own anchors the mean is zero, and so is all that the model says.
    """
    packed = of_all(records, "power")
    power = unpack_power(torch.cat(packed)[None], 2 * sum(map(len, packed)))[0]
    powers = torch.split(power, [2 * len(one) for one in packed])
    own = [one.num_positions * num_anchors for one in placing.geometries]
    return {
        "rest": placing.anchors(of_all(records, "rest")),
        "power": placing.anchors([one[:size] for one, size in zip(powers, own, strict=True)]),
        "profile": stacked(records, "profile"),
        "bound": stacked(records, "bound"),
    }


def _groups(grid: ScoreGrid, device: torch.device) -> Tensor:
    """Group, level * A + a, of each of the R anchors: (R,) int64; not to be changed."""
    return _groups_of(grid.geometry.level_sizes, grid.num_anchors, device)


@lru_cache(maxsize=32)
def _groups_of(
    level_sizes: tuple[tuple[int, int], ...], num_anchors: int, device: torch.device
) -> Tensor:
    areas = [height * width for height, width in level_sizes]
    levels = torch.tensor([areas, list(range(len(areas)))])
    counts, level = levels.to(device, non_blocking=True).unbind()
    level = torch.repeat_interleave(level, counts, output_size=sum(areas))
    return (level[:, None] * num_anchors + torch.arange(num_anchors, device=device)).flatten()


def _profiles(dropped: Tensor, kept: Tensor, grid: ScoreGrid) -> Tensor:
    """Mean dropped probability of each level, anchor and class: (n, L, A, K) float32."""
    means = []
    start = 0
    for height, width in grid.geometry.level_sizes:
        stop = start + height * width * grid.num_anchors
        shape = (len(dropped), height * width, grid.num_anchors, grid.num_classes)
        sums = dropped[:, start:stop].reshape(shape).sum(dim=1)
        counts = height * width - kept[:, start:stop].reshape(shape).sum(dim=1)
        means.append(sums / counts.clamp(min=1))
        start = stop
    return torch.stack(means, dim=1)


def _fit_powers(dropped: Tensor, profile: Tensor, grid: ScoreGrid) -> Tensor:
    """Fit each anchor's power by least squares of logarithms, weighted by probability.

    Args:
        dropped: (n, R, K), zero where kept.
        profile: (n, L, A, K) float32, as it will be decoded.

    Returns:
        (n, R) int16 codes 0 to 15.
    """
    log_profile = _logarithms(profile).flatten(1, 2)  # [n, G, K]
    groups = _groups(grid, dropped.device)
    codes = []
    for weight, log_group in zip(dropped, log_profile, strict=True):
        centred = log_group[groups]  # [R, K]
        total = weight.sum(dim=1, keepdim=True).clamp(min=TINY)
        centred -= (weight * centred).sum(dim=1, keepdim=True) / total
        weighted = weight * centred
        # Where the probability is zero, so is its weight. (PyTorch's logsigmoid takes ten times as
        # long on a CPU.)
        excess = weight.clamp(min=TINY).log_() - log_group[groups]
        slope = (weighted * excess).sum(dim=1) / (weighted * centred).sum(dim=1).clamp(min=TINY)
        code = (slope / POWER_STEP).round_() + POWER_OFFSET
        codes.append(code.clamp_(0, NUM_POWERS - 1).to(torch.int16))
    return torch.stack(codes)


def _shapes(profile: Tensor) -> Tensor:
    """Profiles to every power, each of mean 1: (n, L, A, K) to (n, G, powers, K)."""
    exponent = _exponents(profile.device)
    logs = _logarithms(profile).flatten(1, 2)  # [n, G, K]
    return torch.softmax(exponent[:, None] * logs[:, :, None], dim=3) * profile.shape[3]


@lru_cache
def _exponents(device: torch.device) -> Tensor:
    """What each code of a power raises a profile to: (powers,) float32, made once a device."""
    powers = torch.arange(NUM_POWERS) - POWER_OFFSET
    return (1 + POWER_STEP * powers.to(torch.float32)).to(device, non_blocking=True)


def _logarithms(profile: Tensor) -> Tensor:
    """Natural logarithms; classes of which nothing was dropped count as very unlikely ones."""
    return profile.clamp(min=1e-12).log()


def _encode_logarithms(values: Tensor, bound: Tensor, steps_per_octave: int) -> Tensor:
    """Code (n, ...) values in [0, bound] as uint8, in fractions of an octave below (n,) bound."""
    ratio = values / _like(bound.clamp(min=TINY), values)
    steps = ratio.log2_().mul_(steps_per_octave).round_()  # <= 0; -inf for 0
    return steps.add_(LAST_CODE).clamp_(0, LAST_CODE).to(torch.uint8)


def _decode_logarithms(codes: Tensor, bound: Tensor, steps_per_octave: int) -> Tensor:
    """Undo `_encode_logarithms`: (n, ...) uint8 and (n,) float32 to (n, ...) float32."""
    table = _table(steps_per_octave, codes.device)
    return table[codes.to(torch.int64)] * _like(bound, codes)


@lru_cache
def _table(steps_per_octave: int, device: torch.device) -> Tensor:
    """Fraction of the bound that each code stands for: (256,) float32, made once a device."""
    steps = torch.arange(LAST_CODE + 1, dtype=torch.float32)
    table = torch.exp2((steps - LAST_CODE) / steps_per_octave)
    table[0] = 0.0
    return table.to(device, non_blocking=True)


def _like(bound: Tensor, values: Tensor) -> Tensor:
    """Give (n,) as many dimensions as (n, ...)."""
    return bound.reshape(-1, *[1] * (values.dim() - 1))


def _largest(probabilities: Tensor, num_kept: int) -> Tensor:
    """Return the (n, M) flat indices of the M largest of (n, R, K), ascending."""
    _, num_boxes, num_classes = probabilities.shape
    # The M largest lie on the M anchors with the largest maxima: looking at those alone takes
    # half the time on a CPU.
    best = probabilities.amax(dim=2)
    anchor = best.topk(min(num_kept, num_boxes), dim=1, sorted=False).indices  # [n, Q]
    scores = probabilities.gather(1, anchor[:, :, None].expand(-1, -1, num_classes))  # [n, Q, K]
    place = scores.flatten(1).topk(num_kept, dim=1, sorted=False).indices  # [n, M]
    row = torch.div(place, num_classes, rounding_mode="floor")
    index = anchor.gather(1, row) * num_classes + place % num_classes
    return index.sort(dim=1).values
