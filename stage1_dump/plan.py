"""The plan: every record of a cache with its bucket and slot, before anything is computed.

It is a pure function of annotations, augmentation and padding. Nothing here opens an image, needs
a model or draws a random number, so that any rank, any stage and `verify --expect` get the same
plan from the same config.

The order is view-major: all records of view 0, then those of view 1, and so on; within a view by
bucket, within a bucket by image id. In each bucket a view starts at a shard boundary, and buckets
are numbered in the order in which the views bring them in. A further view therefore only appends.

Shape letters: N images, M records (images times views).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from numpy.typing import NDArray

from configs.schema import ViewsConfig
from dataset.annotations import ImageTable
from dataset.views import plan_views
from storage import Index, build_index
from storage.schema import MAX_SHARD_RECORDS


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    """What a plan depends on besides the images.

    Attributes:
        views: the node VIEWS.
        size_divisibility: padded heights and widths are multiples of this, pixels.
        shard_records: records in a shard.
    """

    views: ViewsConfig
    size_divisibility: int
    shard_records: int


def make_plan(images: ImageTable, config: PlanConfig) -> Index:
    """Plan all views of all images.

    Args:
        images: N images, sorted by id.
        config: see `PlanConfig`.

    Returns:
        M records in plan order.

    Raises:
        ValueError: there are no images, or a view would have a side of no pixels.
    """
    if len(images) == 0:
        raise ValueError("the annotations name no image: there is nothing to plan")
    views = [_plan_view(images, config, view) for view in range(config.views.num)]
    columns = {name: np.concatenate([view[name] for view in views]) for name in views[0]}
    return build_index(**columns, shard_records=config.shard_records)


def records_that_fit(record_bytes: Iterable[int], *, shard_bytes: int, batch: int) -> int:
    """Choose the records of a shard by the size of its largest object.

    Args:
        record_bytes: bytes of one record, of every field.
        shard_bytes: size to aim at, not to exceed; one record is the least.
        batch: records in a teacher forward. Shards are computed one by one, so a number that is
            no multiple of it would make every shard end with a forward that is not full.
    """
    fitting = min(max(1, shard_bytes // max(record_bytes)), MAX_SHARD_RECORDS)
    return fitting - fitting % batch if fitting > batch else fitting


def bucket_size(name: str) -> tuple[int, int]:
    """Padded height and width, pixels, of a bucket by its name, such as 0800x1344."""
    height, width = name.split("x")
    return int(height), int(width)


def check_augmentations(cfg: CfgNode) -> None:
    """Refuse augmentations that a plan cannot record.

    The node VIEWS decides scale and flip in both stages; `INPUT.MIN_SIZE_TRAIN` and
    `INPUT.MAX_SIZE_TRAIN` are not used. Whatever else would change the pixels is an error, because
    a cached record belongs to one exact view.

    Raises:
        ValueError: cropping, a vertical flip, or flips both forbidden and asked for.
    """
    if cfg.INPUT.CROP.ENABLED:
        raise ValueError(
            "INPUT.CROP.ENABLED is True, but a cached view cannot be cropped; set it to False"
        )
    flip = cfg.INPUT.RANDOM_FLIP
    if flip not in ("horizontal", "none"):
        raise ValueError(
            f"INPUT.RANDOM_FLIP is {flip!r}, but views are flipped horizontally or not at all; "
            "set it to horizontal or none (VIEWS.FLIP gives the probability)"
        )
    if flip == "none" and cfg.VIEWS.FLIP > 0:
        raise ValueError(
            f"INPUT.RANDOM_FLIP is 'none', but VIEWS.FLIP is {cfg.VIEWS.FLIP}; "
            "set VIEWS.FLIP to 0.0, or INPUT.RANDOM_FLIP to horizontal"
        )


def _plan_view(images: ImageTable, config: PlanConfig, view: int) -> dict[str, NDArray[Any]]:
    """The index columns of one view of all N images, ordered by bucket and image id."""
    planned = plan_views(
        config.views,
        image_ids=images.ids,
        view=view,
        heights=images.heights,
        widths=images.widths,
    )
    step = config.size_divisibility
    padded = np.stack([-(-planned.height // step), -(-planned.width // step)], axis=1) * step
    sizes, bucket = np.unique(padded, axis=0, return_inverse=True)
    names = np.array([f"{height:04d}x{width:04d}" for height, width in sizes.tolist()])
    # lexsort takes the most significant key last.
    order = np.lexsort((planned.image_id, bucket))
    return {
        "image_id": planned.image_id[order],
        "view": np.full(len(images), view, dtype=np.int32),
        "seed": planned.seed[order],
        "height": planned.height[order],
        "width": planned.width[order],
        "flip": planned.flip[order],
        "bucket": names[bucket][order],
    }
