"""A student learns from an exact cache what it learns from the live teacher."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage

from configs.loader import load_config
from detectors import family_of
from stage1_dump.dump import run as dump
from stage2_distill.teacher import padded_size
from stage2_distill.trainer import DistillTrainer
from tests.stage2_distill.conftest import Configure, write_student
from tests.stage2_distill.runs import GID_LOSSES, OWN_LOSSES, build

Step = tuple[dict[str, float], dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def one_by_one(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exact cache whose teacher saw one view at a time."""
    target = tmp_path_factory.mktemp("one_by_one")
    path = write_student(
        folder, target, "exact", CACHE={"LOCATION": str(target / "cache")}, TEACHER={"BATCH": 1}
    )
    dump(load_config(str(path)))
    return target / "cache"


def step(trainer: DistillTrainer, batch: list[dict[str, Any]]) -> Step:
    """Every loss and every gradient of one batch, from the weights that the trainer began with."""
    model = trainer._trainer.model
    model.zero_grad()
    with EventStorage():
        losses = model(batch)
    torch.stack(list(losses.values())).sum().backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return {name: loss.item() for name, loss in losses.items()}, gradients


def sizes_of(batch: list[dict[str, Any]]) -> set[tuple[int, int]]:
    return {padded_size(item["image"], 32) for item in batch}


def next_batch(trainer: DistillTrainer, *, mixed: bool) -> list[dict[str, Any]]:
    """The first batch of views of several padded sizes, or of one."""
    return next(
        b for b in trainer.build_train_loader(trainer.cfg) if (len(sizes_of(b)) > 1) == mixed
    )


@pytest.mark.parametrize("mixed", [False, True], ids=["one size", "mixed sizes"])
@pytest.mark.parametrize("score", ["per_class", "max"])
def test_losses_and_gradients_of_a_batch_agree(
    configure: Configure, mixed: bool, score: str
) -> None:
    gid = {"SCORE": score, "RELATION_SCOPE": "image" if mixed else "batch"}
    cached, live = (
        build(configure("exact", TEACHER={"SOURCE": source}, GID=gid))
        for source in ("cache", "live")
    )
    batch = next_batch(cached, mixed=mixed)
    # The dump ran other views together than this batch has: rounding is all that may differ.
    (ours, our_gradients), (theirs, their_gradients) = (step(t, batch) for t in (cached, live))
    assert ours.keys() == theirs.keys() == OWN_LOSSES | GID_LOSSES
    for name, loss in theirs.items():
        assert ours[name] == pytest.approx(loss, rel=1e-5), name
    assert our_gradients.keys() == their_gradients.keys()
    assert len(their_gradients) == sum(p.requires_grad for p in live._trainer.model.parameters())
    for name, gradient in their_gradients.items():
        one, other = our_gradients[name].flatten().double(), gradient.flatten().double()
        if other.any():
            cosine = one @ other / (one.norm() * other.norm())
            assert cosine >= 0.999999, name
        else:
            assert not one.any(), name


def test_the_outputs_of_every_view_are_the_same_bit_by_bit(
    configure: Configure, one_by_one: Path
) -> None:
    cached, live = (
        build(configure("exact", TEACHER={"SOURCE": source, "BATCH": 1}, CACHE={"LOCATION": cache}))
        for source, cache in (("cache", str(one_by_one)), ("live", ""))
    )
    family, cfg = family_of(cached.cfg), cached.cfg
    shared = 0
    for batch in islice(cached.build_train_loader(cfg), 12):
        shared += len(batch) - len(sizes_of(batch))
        height, width = map(max, zip(*sizes_of(batch), strict=True))
        grid = family.geometry(cfg, height, width).level_sizes
        ours, theirs = (
            one.distiller._source.outputs(batch, grid, torch.device("cpu"))
            for one in (cached, live)
        )
        for one, other in zip(ours.features, theirs.features, strict=True):
            assert torch.equal(one, other)
        assert torch.equal(ours.probabilities, theirs.probabilities)
        assert torch.equal(ours.deltas, theirs.deltas)
    assert shared  # views of one size, which the cache decodes together
