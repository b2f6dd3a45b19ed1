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
from numpy.typing import NDArray

from configs.nodes import ViewsConfig
from dataset.tables import ImageTable
from dataset.views import Augmentation, plan_views
from storage import Index, build_index
from storage.schema import MAX_RECORDS, MAX_SHARD_RECORDS


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
    if len(images) * config.views.num > MAX_RECORDS:
        raise ValueError(
            f"VIEWS.NUM {config.views.num}: {len(images)} images make more than the {MAX_RECORDS} "
            "records that a cache can hold; lower it, or DATASET.MAX_IMAGES"
        )
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


def _plan_view(images: ImageTable, config: PlanConfig, view: int) -> dict[str, NDArray[Any]]:
    """The index columns of one view of all N images, ordered by bucket and image id."""
    planned = plan_views(
        Augmentation.of_config(config.views),
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
        "bucket": names[bucket][order],
    }
