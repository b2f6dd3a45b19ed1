"""How far the data workers run ahead, and how batches come to the device."""

import logging
from contextlib import nullcontext
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch.utils.data import DataLoader

from configs.loader import load_config
from detectors import Setup, training_images
from detectors.command import register_data
from detectors.packing import PackedBatch, pack
from stage2_distill.cache_check import open_cache
from stage2_distill.data import build_data, largest_item_bytes
from stage2_distill.prefetch import DeviceLoader, Lead, plan_lead
from tests.detectors.test_packing import assert_same
from tests.stage2_distill.conftest import Configure

MB = 1_000_000


@pytest.mark.parametrize(
    ("workers", "item_bytes", "lead"),
    [
        (4, 1 * MB, (4, 4, 1)),
        (4, 10 * MB, (4, 2, 1)),
        (4, 25 * MB, (4, 1, 1)),
        (4, 40 * MB, (4, 1, 2)),
        (4, 300 * MB, (3, 1, 10)),
        (4, 5000 * MB, (1, 1, 10)),
        (0, 10 * MB, (0, 0, 1)),
    ],
)
def test_the_lead_is_bounded_in_bytes(
    workers: int, item_bytes: int, lead: tuple[int, int, int]
) -> None:
    found = plan_lead(workers=workers, images=10, item_bytes=item_bytes, limit_bytes=1000 * MB)
    assert (found.workers, found.factor, found.parts) == lead
    assert found.part_bytes == -(-10 // found.parts) * item_bytes


def test_sixteen_workers_read_batches_of_sixteen_large_records() -> None:
    """Preset balanced at 800x1344, page-locked, with the default CACHE.PREFETCH_BYTES."""
    found = plan_lead(
        workers=16, images=16, item_bytes=11_200_000, limit_bytes=1 << 30, page_locked=True
    )
    assert found == Lead(workers=16, factor=1, parts=4, part_bytes=1 << 26)


def test_fewer_workers_are_a_warning_that_names_the_setting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        plan_lead(workers=4, images=2, item_bytes=400 * MB, limit_bytes=1000 * MB)
    assert "lowered to 2: CACHE.PREFETCH_BYTES 1000000000" in caplog.messages[0]
    assert "2 workers hold up to 2 of 2 parts of a batch ready, 800.0 MB" in caplog.messages[1]


def test_what_is_page_locked_is_announced_as_such(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        plan_lead(workers=1, images=1, item_bytes=MB, limit_bytes=2 * MB, page_locked=True)
    assert "1 batches ready, 1.0 MB at most, page-locked: each takes a power of two" in caplog.text


@pytest.mark.parametrize("workers", [1, 3])
def test_batches_made_in_parts_are_those_made_whole(configure: Configure, workers: int) -> None:
    def first(limit_bytes: int, num_workers: int) -> list[Any]:
        nodes: dict[str, Any] = {
            "DATALOADER": {"NUM_WORKERS": num_workers}, "CACHE": {"PREFETCH_BYTES": limit_bytes},
        }  # fmt: skip
        cfg = load_config(str(configure(**nodes)))
        register_data(cfg)
        setup = Setup(cfg)
        images = training_images(setup)
        loader = build_data(setup, images, open_cache(setup, images)).loader
        assert loader._parts == (1 if num_workers == 0 else cfg.SOLVER.IMS_PER_BATCH)
        return [batch for batch, _ in zip(loader, range(4), strict=False)]

    for whole, parts in zip(first(1 << 30, 0), first(1, workers), strict=True):
        assert len(whole) == len(parts) > 1
        for one, other in zip(whole, parts, strict=True):
            assert_same(one, other)


@pytest.mark.parametrize("preset", ["exact", "balanced"])
def test_the_largest_item_is_that_of_the_largest_view(configure: Configure, preset: str) -> None:
    cfg = load_config(str(configure(preset)))
    register_data(cfg)
    setup = Setup(cfg)
    images = training_images(setup)
    reader = open_cache(setup, images)
    sizes = []
    for batch, _ in zip(build_data(setup, images, reader).loader, range(16), strict=False):
        for item in batch:
            height, width = (-(-side // 32) * 32 for side in item["image"].shape[1:])
            codes = [x.numel() * x.element_size() for x in item["codes"].values()]
            sizes.append(3 * height * width + sum(codes))
    # What is read beside the codes, detections and pixels, is checked and not passed on.
    beside = 4 * 6 * cfg.TEST.DETECTIONS_PER_IMAGE + 4 + 16 * 16 * 3
    found = largest_item_bytes(setup.settings.views, reader) - max(sizes) - beside
    assert 0 <= found < 4  # of zeros, where a field must begin at a multiple of its element size


def test_the_loader_takes_the_lead_of_the_config(configure: Configure) -> None:
    nodes: dict[str, Any] = {"DATALOADER": {"NUM_WORKERS": 3}, "CACHE": {"PREFETCH_BYTES": 1}}
    cfg = load_config(str(configure(**nodes)))
    register_data(cfg)
    setup = Setup(cfg)
    images = training_images(setup)
    loader = build_data(setup, images, open_cache(setup, images)).loader._loader.loader
    assert (loader.num_workers, loader.prefetch_factor) == (1, 1)


@pytest.mark.parametrize(
    ("device", "workers", "locks"), [("cuda", 1, True), ("cuda", 0, False), ("cpu", 1, False)]
)
def test_the_loader_page_locks_what_workers_packed_alone(
    configure: Configure, device: str, workers: int, locks: bool
) -> None:
    cfg = load_config(
        str(configure()), ["MODEL.DEVICE", device, "DATALOADER.NUM_WORKERS", str(workers)]
    )
    register_data(cfg)
    setup = Setup(cfg)
    images = training_images(setup)
    loader = build_data(setup, images, open_cache(setup, images)).loader._loader.loader
    assert loader.pin_memory == locks


def test_what_no_worker_packed_is_packed_into_page_locked_memory(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    locked: list[torch.Tensor] = []

    def pinned_empty(shape: tuple[int], dtype: torch.dtype, remedy: str) -> torch.Tensor:
        assert remedy == "lower SOLVER.IMS_PER_BATCH"
        locked.append(torch.empty(shape, dtype=dtype))
        return locked[-1]

    monkeypatch.setattr("detectors.packing.pinned_empty", pinned_empty)
    monkeypatch.setattr(torch.cuda, "Stream", lambda _: mock.Mock())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: mock.Mock())
    copied: list[torch.Tensor] = []

    def to(self: PackedBatch, device: torch.device) -> PackedBatch:
        copied.append(self.memory)
        return replace(self, memory=mock.Mock())

    monkeypatch.setattr(PackedBatch, "to", to)
    monkeypatch.setattr("stage2_distill.prefetch._joined", lambda parts: parts)
    by_worker = pack([{"image": torch.zeros(3)}], shared=False)
    list(DeviceLoader([[{"image": torch.ones(3)}], by_worker], torch.device("cuda")))
    assert copied[0] is locked[0] and copied[1] is by_worker.memory and len(locked) == 1


def test_the_records_of_a_batch_are_asked_for_together(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg = load_config(str(configure()))
    register_data(cfg)
    setup = Setup(cfg)
    images = training_images(setup)
    reader = open_cache(setup, images)
    calls = []
    read_each = reader.read_each
    monkeypatch.setattr(reader, "read_each", lambda r: calls.append(list(r)) or read_each(r))
    next(iter(build_data(setup, images, reader).loader))
    assert [len(records) for records in calls] == [cfg.SOLVER.IMS_PER_BATCH]


def test_images_codes_and_ground_truth_go_to_the_device() -> None:
    truth = Instances((4, 4), gt_boxes=Boxes(torch.ones(1, 4)), gt_classes=torch.zeros(1))
    item = {
        "image": torch.ones(3, 4, 4),
        "codes": {"a": torch.ones(2)},
        "instances": truth,
        "file_name": "x.png",
    }
    (moved,) = pack([item], shared=False).to(torch.device("meta")).unpack()
    assert moved["image"].device.type == moved["codes"]["a"].device.type == "meta"
    assert moved["instances"].gt_boxes.device.type == "meta"
    assert moved["instances"].gt_classes.device.type == "meta"
    assert moved["instances"].image_size == (4, 4)
    assert moved["file_name"] == "x.png"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_workers_start_with_the_iterator_and_not_with_its_first_batch(device: str) -> None:
    """They are seeded from generators that a resumed run restores in between."""
    before = torch.get_rng_state()
    batches = iter(DeviceLoader(DataLoader([1, 2]), torch.device(device)))
    drawn = torch.get_rng_state()
    assert not torch.equal(drawn, before)
    if device == "cpu":
        next(batches)
        assert torch.equal(torch.get_rng_state(), drawn)


@pytest.mark.gpu
def test_batches_are_copied_in_order_while_the_gpu_computes() -> None:
    host = [[{"image": torch.full((1 << 20,), float(i)).pin_memory()}] for i in range(20)]
    busy = torch.ones(2000, 2000, device="cuda")
    sums = []
    for batch in DeviceLoader(host, torch.device("cuda")):
        busy = busy @ busy / 2000
        sums.append(batch[0]["image"].sum())
        del batch
    assert [int(total) for total in sums] == [i << 20 for i in range(20)]
