"""What becomes of an image under each of its views: the steps' outcomes, and the sizes.

Shape letter: N images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from configs.stock_limits import MAX_SIDE

from .base import Step, named
from .registry import step_of_fingerprint, steps_of_config
from .seeds import HASH_NAME, HASH_VERSION, view_seeds

if TYPE_CHECKING:
    from detectron2.data.transforms import TransformList

    from configs.nodes import ViewsConfig

_HASH = {"name": HASH_NAME, "version": HASH_VERSION}


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Everything that decides the pixels of a view: the base seed, and the steps in their order.

    The number of views is left out, so that a cache can grow by further views.

    Attributes:
        seed: base seed.
        steps: of a view.
        plain: numbers of the views that lack some of them, ascending.
    """

    seed: int
    steps: tuple[Step, ...]
    plain: tuple[int, ...] = ()

    @classmethod
    def of_config(cls, config: ViewsConfig) -> Augmentation:
        """The augmentation of the node VIEWS.

        Raises:
            ValueError: `VIEWS.STEPS` names a step that is not registered, or one twice;
                `VIEWS.PLAIN` has no effect.
        """
        steps = steps_of_config(config)
        if config.plain and all(step.in_plain for step in steps):
            raise ValueError(
                f"VIEWS.PLAIN: expected () where no view has a crop or colours, got {config.plain}"
            )
        return cls(seed=config.seed, steps=steps, plain=tuple(sorted(config.plain)))

    @classmethod
    def of_fingerprint(cls, fingerprint: Mapping[str, Any]) -> Augmentation:
        """The augmentation that a cache was made with, from its manifest.

        Raises:
            ValueError: the hash or a step of it is not known here.
        """
        if fingerprint["hash"] != _HASH:
            raise ValueError(f"the cache's views have the hash {fingerprint['hash']}, not {_HASH}")
        steps = tuple(step_of_fingerprint(one) for one in fingerprint["steps"])
        plain = tuple(fingerprint.get("plain", ()))
        return cls(seed=fingerprint["seed"], steps=steps, plain=plain)

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The augmentation as JSON."""
        steps = [step.fingerprint for step in self.steps]
        plain = {"plain": list(self.plain)} if self.plain else {}
        return {"seed": self.seed, "hash": _HASH, "steps": steps, **plain}

    def steps_of(self, view: int) -> tuple[Step, ...]:
        """The steps of the views of a number."""
        return tuple(step for step in self.steps if step.in_plain or view not in self.plain)

    def cuts(self, view: int) -> bool:
        """Whether objects of an image may lie outside of its view of this number."""
        return any(step.cuts for step in self.steps_of(view))

    @property
    def largest_size(self) -> tuple[int, int]:
        """The largest shorter and longer side of a view of any image, pixels."""
        shorts, longs = zip(*map(self._largest_size, (-1, *self.plain[:1])), strict=True)
        return max(shorts), max(longs)

    def _largest_size(self, view: int) -> tuple[int, int]:
        largest = (MAX_SIDE, MAX_SIDE)
        for step in self.steps_of(view):
            largest = step.largest_size(largest)
        return largest


@dataclass(frozen=True, kw_only=True)
class View:
    """One deterministic augmentation of one image.

    Attributes:
        image_id, view: which it is.
        seed: the 64-bit hash that the steps draw from.
        steps: every step with the view's outcome of it.
        sizes: height and width of the stored image, and after each step, pixels.
    """

    image_id: int
    view: int
    seed: int
    steps: tuple[tuple[Step, Any], ...]
    sizes: tuple[tuple[int, int], ...]

    @property
    def height(self) -> int:
        """Pixels of the view."""
        return self.sizes[-1][0]

    @property
    def width(self) -> int:
        """Pixels of the view."""
        return self.sizes[-1][1]

    def transforms(self) -> TransformList:
        """All that is done to the image's pixels and boxes; `inverse()` leads boxes back.

        Raises:
            ValueError: a step's code fails; names it.
        """
        from detectron2.data.transforms import TransformList

        return TransformList([transforms for _, transforms in self.transforms_of_steps()])

    def transforms_of_steps(self) -> Iterator[tuple[Step, TransformList]]:
        """Yield each step, and what it does; raises as `transforms`."""
        from detectron2.data.transforms import TransformList

        for (step, outcome), size in zip(self.steps, self.sizes[:-1], strict=True):
            with named(step):
                transforms = TransformList(step.transforms(outcome, size))
            yield step, transforms


@dataclass(frozen=True, kw_only=True)
class ViewArrays:
    """One view of each of N images: what `View` holds, as arrays.

    Attributes:
        image_id: (N,) ids.
        view: number of the view.
        seed: (N,) hashes.
        steps: the steps, in their order.
        outcomes: name of a step to its (N, ...) outcomes.
        sizes: (N, 2) heights and widths of the stored images, and after each step, pixels.
    """

    image_id: NDArray[np.int64]
    view: int
    seed: NDArray[np.uint64]
    steps: tuple[Step, ...]
    outcomes: dict[str, NDArray[Any]]
    sizes: tuple[NDArray[np.int64], ...]

    @property
    def height(self) -> NDArray[np.int32]:
        """(N,) pixels of the views."""
        return self.sizes[-1][:, 0].astype(np.int32)

    @property
    def width(self) -> NDArray[np.int32]:
        """(N,) pixels of the views."""
        return self.sizes[-1][:, 1].astype(np.int32)

    def __len__(self) -> int:
        return len(self.image_id)

    def __getitem__(self, index: int) -> View:
        sizes = [sizes[index].tolist() for sizes in self.sizes]
        return View(
            image_id=int(self.image_id[index]),
            view=self.view,
            seed=int(self.seed[index]),
            steps=tuple((step, self.outcomes[step.name][index].tolist()) for step in self.steps),
            sizes=tuple((height, width) for height, width in sizes),
        )

    def __iter__(self) -> Iterator[View]:
        return (self[index] for index in range(len(self)))


def plan_view(
    augmentation: Augmentation, *, image_id: int, view: int, height: int, width: int
) -> View:
    """`plan_views` for one image."""
    return plan_views(
        augmentation, image_ids=[image_id], view=view, heights=[height], widths=[width]
    )[0]


def plan_views(
    augmentation: Augmentation,
    *,
    image_ids: Sequence[int] | NDArray[Any],
    view: int,
    heights: Sequence[int] | NDArray[Any],
    widths: Sequence[int] | NDArray[Any],
) -> ViewArrays:
    """Decide what becomes of N images under one of their views.

    Args:
        augmentation: what decides it, `Augmentation.of_config(VIEWS)`.
        image_ids: (N,) ids in the annotation file.
        view: number of the view, from 0; may be at or beyond `VIEWS.NUM`.
        heights: (N,) pixels of the stored images, after EXIF rotation.
        widths: (N,) likewise.

    Raises:
        ValueError: an image's size is not positive, or its view would have a side of no pixels;
            the lengths differ; or a step of the user's fails or gives something else than it must.
    """
    ids = np.asarray(image_ids, dtype=np.int64)
    sizes = [_stored_sizes(ids, heights, widths)]
    seeds = view_seeds(augmentation.seed, ids, view)
    outcomes = {}
    steps = augmentation.steps_of(view)
    for step in steps:
        with named(step):
            outcomes[step.name] = np.asarray(step.draw(seeds, sizes[-1]))
            after = np.asarray(step.sizes_after(outcomes[step.name], sizes[-1]))
        _check_step(step, outcomes[step.name], after, ids, sizes[-1])
        if after is not sizes[-1] and len(ids):
            _check_bound(step, after, sizes[-1])
        sizes.append(after.astype(np.int64))
    return ViewArrays(
        image_id=ids,
        view=view,
        seed=seeds,
        steps=steps,
        outcomes=outcomes,
        sizes=tuple(sizes),
    )


def _stored_sizes(ids: NDArray[np.int64], heights: Any, widths: Any) -> NDArray[np.int64]:
    """(N, 2) heights and widths, checked."""
    heights, widths = (np.asarray(one, dtype=np.int64) for one in (heights, widths))
    if not (ids.shape == heights.shape == widths.shape and ids.ndim == 1):
        raise ValueError(
            "image_ids, heights and widths must be one-dimensional and of one length, "
            f"got shapes {ids.shape}, {heights.shape} and {widths.shape}"
        )
    wrong = np.flatnonzero((heights < 1) | (widths < 1))
    if len(wrong):
        bad = wrong[0]
        raise ValueError(
            f"image {ids[bad]}: height and width must be positive, got {heights[bad]}x{widths[bad]}"
        )
    return np.stack([heights, widths], axis=1)


def _check_step(
    step: Step,
    outcomes: NDArray[Any],
    after: NDArray[Any],
    ids: NDArray[np.int64],
    before: NDArray[np.int64],
) -> None:
    if outcomes.shape[:1] != ids.shape or after.shape != before.shape or after.dtype.kind != "i":
        raise ValueError(
            f"step {step.name}: expected {len(ids)} outcomes and whole sizes of shape "
            f"{before.shape}, got {outcomes.shape} and {after.dtype} of {after.shape}"
        )
    for bad in np.flatnonzero((after < 1).any(axis=1))[:1]:
        height, width = before[bad]
        raise ValueError(
            f"image {ids[bad]}: the step {step.name} would shrink its {height}x{width} pixels "
            f"(height x width) to a side of no pixels; {step.remedy}"
        )


def _check_bound(step: Step, after: NDArray[Any], before: NDArray[np.int64]) -> None:
    """Refuse sizes beyond what the step promises, by which memory is planned."""
    largest, found = _largest_sides(before), _largest_sides(after)
    with named(step):
        short, long = step.largest_size(largest)
    if found[0] > short or found[1] > long:
        raise ValueError(
            f"step {step.name}: `largest_size` gives {(short, long)} for {largest}, the largest "
            f"shorter and longer side before the step, but `sizes_after` comes to {found}"
        )


def _largest_sides(sizes: NDArray[Any]) -> tuple[int, int]:
    """The largest shorter and longer side of (N, 2) sizes."""
    return int(sizes.min(axis=1).max()), int(sizes.max(axis=1).max())
