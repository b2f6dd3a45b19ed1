"""Two real processes over gloo on loopback, against one."""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from detectron2.utils.events import EventStorage

from configs.loader import load_config
from detectors import training_images
from stage1_dump.dump import run as dump
from stage2_distill import data
from tests.stage2_distill.conftest import STUDENT, write_student
from tests.stage2_distill.rank_process import RANKS, Runs, run_rank
from tests.stage2_distill.runs import GID_LOSSES, OWN_LOSSES, build, losses_of, train
from tests.stage2_distill.test_students import RESNETS, model

STEPS = 5


# Those that with global counts have the same loss for any number of ranks.
METHODS = ("gid", "frs", "cwd", "mgd", "fgd", "mimic", "boxes", "pseudo")


def nodes(norm: str, counts: str, methods: Sequence[str]) -> dict[str, Any]:
    """A student on views of one size; padding to a larger one would change its outputs.

    It learns so slowly that what rounding does to one step does not grow in the next.
    """
    return {
        "MODEL": model(RESNETS={**RESNETS, "NORM": norm}),
        "DISTILL": {"COUNTS": counts, "METHODS": list(methods)},
        "GID": {"RELATION_SCOPE": "image", "TOP_K": 4},
        "FRS": {"RAMP_ITERS": 1},
        "VIEWS": {**STUDENT["VIEWS"], "SCALES": [64], "MAX_SIZE": 64},
        "SOLVER": {
            **STUDENT["SOLVER"], "BASE_LR": 0.0001, "IMS_PER_BATCH": 4, "MAX_ITER": STEPS,
            "WARMUP_ITERS": 0, "STEPS": [], "CHECKPOINT_PERIOD": 100,
        },
        "DATASETS": {"TRAIN": ["folder_train"], "TEST": []},
    }  # fmt: skip


@pytest.fixture(scope="module")
def write(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Write a config by name, all of them on one cache of small views."""
    cache = {"LOCATION": str(tmp_path_factory.mktemp("ranks_cache") / "cache")}

    def make(name: str, norm: str, counts: str, methods: Sequence[str] = ("gid",)) -> Path:
        target = tmp_path_factory.mktemp(name)
        return write_student(folder, target, "exact", CACHE=cache, **nodes(norm, counts, methods))

    dump(load_config(str(make("dump", "LN", "rank"))))
    return make


@pytest.fixture(scope="module")
def pair(write: Any, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Results of both processes, by run."""
    folder = tmp_path_factory.mktemp("pair")
    runs: Runs = {
        "global": (str(write("global", "LN", "global")), ["SOLVER.CHECKPOINT_PERIOD", 3]),
        "methods": (str(write("methods", "LN", "global", METHODS)), ["SOLVER.BASE_LR", 1e-5]),
        "synchronised": (str(write("synchronised", "naiveSyncBN", "global")), []),
        "stock": (str(write("stock", "BN", "rank")), ["SOLVER.CHECKPOINT_PERIOD", 3]),
        "in_parts": (str(write("in_parts", "LN", "rank")), ["SOLVER.ACCUMULATE", 2]),
        "fails": (str(write("fails", "LN", "rank")), []),
        "diverges": (str(write("diverges", "LN", "rank")), []),
        "differs": (str(write("differs", "LN", "rank")), []),
        "infinite": (str(write("infinite", "naiveSyncBN", "global")), []),
        "infinite_in_parts": (
            str(write("infinite_in_parts", "LN", "rank")),
            ["SOLVER.ACCUMULATE", 2],
        ),
    }
    mp.spawn(run_rank, (str(folder / "meeting"), runs, str(folder)), nprocs=RANKS)
    found: dict[str, list[Any]] = {
        name: [torch.load(folder / f"{name}.{rank}.pt") for rank in range(RANKS)] for name in runs
    }
    folders = {name: Path(path).parent / "output" for name, (path, _) in runs.items()}
    return {**found, "folders": folders}


def assert_same_losses(pair: list[Any], alone: Any, steps: int) -> None:
    """The ranks' mean losses in the first steps are those of one process."""
    losses = losses_of(alone)
    assert losses.keys() >= OWN_LOSSES | GID_LOSSES
    for name, values in losses.items():
        assert pair[0]["mean"][name][:steps] == pytest.approx(values[:steps], rel=1e-5), name


def test_with_global_counts_every_method_divides_by_the_counts_of_all_ranks(
    pair: Any, write: Any
) -> None:
    alone = train(write("alone_methods", "LN", "rank", METHODS), "SOLVER.BASE_LR", 1e-5)
    assert {name.split("_")[1] for name in losses_of(alone)} >= {*METHODS} - {"pseudo"}
    assert_same_losses(pair["methods"], alone, STEPS)


def test_with_global_counts_two_ranks_train_as_one(pair: Any, write: Any) -> None:
    alone = train(write("alone", "LN", "rank"))
    assert_same_losses(pair["global"], alone, STEPS)
    first, second = (rank["weights"] for rank in pair["global"])
    for name, parameter in alone.detector.named_parameters():
        assert torch.equal(first[name], second[name]), name
        torch.testing.assert_close(first[name], parameter.detach(), rtol=1e-5, atol=1e-7)


def resumed(pair: Any, name: str, path: Path) -> Any:
    """One process that goes on from a checkpoint that the two left in mid-run."""
    output = path.parent / "output"
    output.mkdir()
    shutil.copy(pair["folders"][name] / "model_0000002.pth", output)
    (output / "last_checkpoint").write_text("model_0000002.pth")
    return train(path, resume=True)


def test_one_rank_goes_on_at_the_image_where_two_stopped(
    pair: Any, write: Any, caplog: pytest.LogCaptureFixture
) -> None:
    losses = losses_of(resumed(pair, "global", write("goes_on", "LN", "global")))
    for name, values in losses.items():
        assert values == pytest.approx(pair["global"][0]["mean"][name][3:], rel=1e-3), name
    (line,) = [text for text in caplog.messages if "resumed by 1" in text]
    assert "written by 2 ranks" in line and "batch norm's statistics" in line


def test_counts_of_a_ranks_own_images_are_added_up_for_one(pair: Any, write: Any) -> None:
    path = write("added_up", "BN", "rank")
    saved = torch.load(pair["folders"]["stock"] / "model_0000002.pth", weights_only=True)
    counts = [rank["loss_normalizer"] for rank in saved["rank_state"]["ranks"]]
    assert counts[0] != counts[1]
    trainer = build(path)
    trainer.rank_state.load_state_dict(saved["rank_state"])
    assert trainer.detector.loss_normalizer == pytest.approx(sum(counts))


def test_without_global_counts_they_do_not(pair: Any) -> None:
    """Else the test above would prove nothing about the counts."""
    own = [rank["own"][0] for rank in pair["global"]]
    assert all(own[0][name] != own[1][name] for name in own[0])


def test_synchronised_batch_norm_over_two_ranks_is_batch_norm_of_one(pair: Any, write: Any) -> None:
    # The forward pass alone: its variance is a difference of means, and further steps of this
    # small network magnify the rounding until other instances are selected.
    alone = train(write("alone_bn", "BN", "rank"))
    assert_same_losses(pair["synchronised"], alone, 1)
    # Each rank's own statistics are further off from the beginning.
    first = losses_of(alone)["loss_gid_feature"][0]
    assert pair["stock"][0]["mean"]["loss_gid_feature"][0] != pytest.approx(first, rel=1e-3)


def share_of(rank: int, path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The trainer of one process that is fed what a rank is fed."""
    trainer = build(path)
    with monkeypatch.context() as patched:
        patched.setattr(data.comm, "get_rank", lambda: rank)
        patched.setattr(data.comm, "get_world_size", lambda: RANKS)
        loader = data.build_data(
            trainer.setup, training_images(trainer.setup), trainer._teacher.reader
        ).loader
    return trainer, iter(loader)


def test_stock_ranks_each_have_the_losses_of_one_process_fed_their_share(
    pair: Any, write: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write("shares", "BN", "rank")
    shares = [share_of(rank, path, monkeypatch) for rank in range(RANKS)]
    loops = [trainer._trainer for trainer, _ in shares]
    for step in range(STEPS):
        for rank, (loop, (_, batches)) in enumerate(zip(loops, shares, strict=True)):
            loop.optimizer.zero_grad()
            with EventStorage(step):
                losses = loop.model(next(batches))
            torch.stack(list(losses.values())).sum().backward()
            wanted = {name: loss.item() for name, loss in losses.items()}
            assert pair["stock"][rank]["own"][step] == pytest.approx(wanted, rel=1e-5), step
        # The exchange of gradients is all that the two have in common.
        for one, other in zip(*(loop.model.parameters() for loop in loops), strict=True):
            if one.grad is not None:
                one.grad = other.grad = (one.grad + other.grad) / RANKS
        for loop in loops:
            loop.optimizer.step()


def test_parts_of_a_step_are_exchanged_between_ranks_once_and_alike(pair: Any) -> None:
    first, second = pair["in_parts"]
    assert len(first["own"]) == 2 * STEPS
    assert all(torch.equal(first["weights"][k], second["weights"][k]) for k in first["weights"])


def test_a_rank_that_cannot_read_stops_both_and_what_was_trained_is_saved(pair: Any) -> None:
    first, second = pair["fails"]
    assert second["error"] == "OSError: shard 0064x0064/00001 is damaged"
    assert first["error"] == "ValueError: shard 0064x0064/00001 is damaged"
    assert len(first["own"]) == len(second["own"]) == 3
    saved = torch.load(pair["folders"]["fails"] / "model_0000002.pth", weights_only=True)
    assert len(saved["rank_state"]["ranks"]) == RANKS
    assert all(torch.equal(saved["model"][k], first["weights"][k]) for k in saved["model"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("diverges", r"images \d+, \d+: loss_gid_feature is nan, .*training diverged"),
        ("infinite", r"images \d+, \d+: image 0 of the batch: the teacher's box deltas hold"),
        ("infinite_in_parts", r"images \d+: image 0 of the batch: the teacher's box deltas hold"),
    ],
)
def test_a_value_that_is_not_finite_on_one_rank_ends_both_in_the_same_step(
    pair: Any, name: str, message: str
) -> None:
    """Also within a forward pass in which the ranks exchange batch statistics and counts."""
    first, second = pair[name]
    assert re.search("FloatingPointError: iteration 2, " + message, second["error"])
    assert first["error"] == second["error"].replace("FloatingPointError", "ValueError")
    assert max(first["seconds"], second["seconds"]) < 30
    # Neither took the broken step.
    assert all(
        torch.equal(first["weights"][k], second["weights"][k])
        for k in first["weights"]
        if "norm" not in k
    )
    assert all(torch.isfinite(value).all() for value in second["weights"].values())


def test_ranks_with_other_terms_end_before_one_waits_for_the_other(pair: Any) -> None:
    expected = (
        "ValueError: iteration 2: the losses of the ranks differ: loss_gid_relation came from one "
        "of the ranks 0 and 1 only; each has to give all of them in every step (0 times what it "
        "computed from where there is nothing to compare)"
    )
    assert [rank["error"] for rank in pair["differs"]] == [expected, expected]
    assert [len(rank["own"]) for rank in pair["differs"]] == [2, 2]
