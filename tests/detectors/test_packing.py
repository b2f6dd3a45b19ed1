"""A batch in one piece of memory comes out as it went in."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from detectors.packing import _SHARES_FILES as SHARES_FILES
from detectors.packing import PackedBatch, pack, pack_in_worker
from detectors.workers import Watched, WorkerError


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


def test_what_a_gpu_copies_from_is_page_locked_when_it_is_packed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = []

    def pinned_empty(shape: tuple[int], dtype: torch.dtype, remedy: str) -> Tensor:
        taken.append(torch.empty(shape, dtype=dtype))
        return taken[-1]

    monkeypatch.setattr("detectors.packing.pinned_empty", pinned_empty)
    items = [item(number) for number in range(3)]
    packed = pack(items, shared=False, page_locked=True)
    assert packed.memory is taken[0] and len(taken) == 1
    for one, other in zip(packed.unpack(), items, strict=True):
        assert_same(one, other)


@pytest.mark.parametrize("how", ["files", "mapped"])
def test_shared_memory_is_the_same_however_it_is_filled(
    how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("detectors.packing._SHARES_FILES", how == "files")
    items = [item(number) for number in range(3)]
    items[1]["image"] = items[1]["image"].transpose(1, 2)
    packed = pack(items, shared=True)
    assert packed.memory.is_shared()
    for one, other in zip(packed.unpack(), items, strict=True):
        assert_same(one, other)


@pytest.mark.skipif(not SHARES_FILES, reason="shared memory is no file here")
def test_items_are_written_as_they_are_made_and_not_kept() -> None:
    held: list[weakref.ref[Tensor]] = []

    def made() -> Iterator[dict[str, Any]]:
        for number in range(3):
            assert not any(one() is not None for one in held)
            image = torch.full((4,), number)
            held.append(weakref.ref(image))
            yield {"image": image}
            del image

    found = [one["image"].tolist() for one in pack(made(), shared=True).unpack()]
    assert found == [[number] * 4 for number in range(3)]


@pytest.mark.skipif(not SHARES_FILES, reason="shared memory is no file here")
def test_full_shared_memory_is_said_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", fail)
    loader: Any = DataLoader(
        Items(), batch_size=2, num_workers=1, collate_fn=pack_in_worker,
        multiprocessing_context="fork",
    )  # fmt: skip
    with pytest.raises(WorkerError, match=r"of shared memory are free at /dev/shm.*--shm-size="):
        list(Watched(loader, batch_bytes=1))


def test_a_batch_without_tensors_is_packed_too() -> None:
    assert pack([{"file_name": "x"}], shared=True).unpack() == [{"file_name": "x"}]


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
