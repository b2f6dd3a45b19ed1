"""How far the data workers run ahead, and how batches come to the device."""

import logging
from typing import Any

import pytest
import torch
from detectron2.structures import Boxes, Instances
from torch.utils.data import DataLoader

from configs.loader import load_config
from detectors import Setup, training_images
from detectors.command import register_data
from stage2_distill.cache_check import open_cache
from stage2_distill.data import build_data, largest_item_bytes
from stage2_distill.packing import pack
from stage2_distill.prefetch import DeviceLoader, Lead, plan_lead
from tests.stage2_distill.conftest import Configure

MB = 1_000_000


@pytest.mark.parametrize(
    ("workers", "batch_bytes", "lead"),
    [
        (4, 10 * MB, Lead(workers=4, factor=4)),
        (4, 100 * MB, Lead(workers=4, factor=2)),
        (4, 250 * MB, Lead(workers=4, factor=1)),
        (4, 400 * MB, Lead(workers=2, factor=1)),
        (4, 5000 * MB, Lead(workers=1, factor=1)),
        (0, 10 * MB, Lead(workers=0, factor=0)),
    ],
)
def test_the_lead_is_bounded_in_bytes(workers: int, batch_bytes: int, lead: Lead) -> None:
    assert plan_lead(workers=workers, batch_bytes=batch_bytes, limit_bytes=1000 * MB) == lead


def test_fewer_workers_are_a_warning_that_names_the_setting(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        plan_lead(workers=4, batch_bytes=400 * MB, limit_bytes=1000 * MB)
    assert "lowered to 2: CACHE.PREFETCH_BYTES 1000000000" in caplog.messages[0]
    assert "2 workers hold up to 2 batches ready, 800.0 MB at most" in caplog.messages[1]


def test_what_is_page_locked_is_announced_as_such(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        plan_lead(workers=1, batch_bytes=MB, limit_bytes=MB, page_locked=True)
    assert "1.0 MB at most, page-locked: each batch takes a power of two" in caplog.text


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


def test_a_batch_is_read_at_once(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    cfg = load_config(str(configure()))
    register_data(cfg)
    setup = Setup(cfg)
    images = training_images(setup)
    reader = open_cache(setup, images)
    calls = []
    read_many = reader.read_many
    monkeypatch.setattr(reader, "read_many", lambda r: calls.append(list(r)) or read_many(r))
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
