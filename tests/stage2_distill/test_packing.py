"""A batch in one piece of memory comes out as it went in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from stage2_distill.packing import PackedBatch, pack, pack_in_worker


def item(number: int) -> dict[str, Any]:
    """An item of the loader: odd sizes, every type of code, and an image without objects."""
    objects = Instances((5, 7))
    objects.gt_boxes = Boxes(torch.arange(4.0 * number).view(number, 4))
    objects.gt_classes = torch.arange(number)
    codes = {
        dtype: torch.from_numpy(np.arange(3 + number).astype(dtype))
        for dtype in ("int8", "uint8", "int16", "int32", "float16", "float32", "float64")
    }
    image = torch.full((3, 5, 7 + number), number, dtype=torch.uint8)
    return {
        "image": image, "instances": objects, "codes": {**codes, "one": torch.tensor(0.5)},
        "height": 5, "file_name": f"{number}.png",
    }  # fmt: skip


def assert_same(one: Any, other: Any) -> None:
    assert type(one) is type(other)
    if isinstance(one, Tensor):
        assert one.dtype == other.dtype and torch.equal(one, other)
    elif isinstance(one, Boxes):
        assert_same(one.tensor, other.tensor)
    elif isinstance(one, Instances):
        assert one.image_size == other.image_size
        assert_same(one.get_fields(), other.get_fields())
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for name in one:
            assert_same(one[name], other[name])
    else:
        assert one == other


@pytest.mark.parametrize("shared", [False, True])
def test_what_was_packed_comes_out_the_same(shared: bool) -> None:
    items = [item(number) for number in range(3)]
    packed = pack(items, shared=shared)
    assert packed.memory.is_shared() == shared
    for one, other in zip(packed.unpack(), items, strict=True):
        assert_same(one, other)


def test_every_tensor_is_a_view_of_one_memory() -> None:
    packed = pack([item(2), item(1)], shared=False)
    first, last = packed.unpack()
    for tensor in (first["image"], last["instances"].gt_boxes.tensor, last["codes"]["int8"]):
        assert tensor.untyped_storage().data_ptr() == packed.memory.untyped_storage().data_ptr()


class Items(Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> dict[str, Any]:
        return item(number)


@pytest.mark.parametrize("workers", [0, 1])
def test_workers_pack_and_nobody_else(workers: int) -> None:
    loader: Any = DataLoader(Items(), batch_size=2, num_workers=workers, collate_fn=pack_in_worker)
    for number, batch in enumerate(loader):
        assert isinstance(batch, PackedBatch) == bool(workers)
        found = batch.unpack() if workers else batch
        for one, other in zip(found, [item(2 * number), item(2 * number + 1)], strict=True):
            assert_same(one, other)
