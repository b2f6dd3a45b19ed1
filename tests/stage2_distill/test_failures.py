"""A cache that cannot be read stops a run, which says what to do and can go on from there."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.wording import one_line
from stage2_distill.__main__ import main
from storage import CacheReader
from storage.errors import CorruptChunkError, MissingShardError, StoreAccessError
from tests.stage2_distill.conftest import Configure
from tests.stage2_distill.runs import build, losses_of, train

STEPS = ("SOLVER.MAX_ITER", 8, "SOLVER.CHECKPOINT_PERIOD", 100)


@pytest.fixture
def cache(folder: Path, tmp_path: Path) -> Path:
    """A copy of the cache, to be damaged."""
    return Path(shutil.copytree(folder / "exact", tmp_path / "cache"))


def configured(configure: Configure, cache: Path, output: str, workers: int) -> Path:
    nodes: dict[str, Any] = {"CACHE": {"LOCATION": str(cache)}}
    nodes["DATALOADER"] = {"NUM_WORKERS": workers}
    path = configure("exact", **nodes, OUTPUT_DIR=str(cache.parent / output))
    return Path(shutil.copy(path, cache.parent / f"{output}.yaml"))


def first_read_in(trainer: Any, step: int) -> tuple[CacheReader, int]:
    """A record that no earlier step reads."""
    reader = trainer._teacher.reader
    seen: set[int] = set()
    for number, batch in enumerate(trainer.build_train_loader(trainer.cfg)):
        records = {reader.record_number(item["image_id"], item["view"]) for item in batch}
        if number >= step and records - seen:
            return reader, min(records - seen)
        seen |= records
    raise AssertionError


def features_of(cache: Path, reader: CacheReader, record: int) -> tuple[Path, int]:
    """The object that holds the features of a record, and the place of one of their bytes."""
    shard, position = reader.place_of(record)
    (path,) = (cache / "buckets" / shard.bucket / "features").glob(f"c/{shard.number}/*")
    reader.read(record)
    number = [array.name for array in reader.arrays[shard.bucket]].index("features")
    start = int(reader._chunks[shard][position][number][0])
    return path, start + 5


def flip(path: Path, offset: int) -> None:
    """Change one bit, or change it back."""
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_chunk_stops_the_run_which_resumes_after_the_repair(
    configure: Configure, cache: Path, workers: int
) -> None:
    whole = losses_of(train(configured(configure, cache, "whole", workers), *STEPS))
    path = configured(configure, cache, "stopped", workers)
    reader, record = first_read_in(build(path, *STEPS, "DATALOADER.NUM_WORKERS", 0), step=3)
    path_of_object, offset = features_of(cache, reader, record)
    flip(path_of_object, offset)
    with pytest.raises(CorruptChunkError) as caught:
        train(path, *STEPS)
    message = one_line(caught.value)
    shard = reader.place_of(record)[0]
    assert f"shard {shard}, array features" in message
    assert f"python -m storage repair {cache}" in message
    # The checkpoint period alone would have saved nothing.
    saved = (cache.parent / "stopped" / "last_checkpoint").read_text()
    done = int(saved.removeprefix("model_").removesuffix(".pth")) + 1
    assert done >= 3
    flip(path_of_object, offset)
    rest = losses_of(train(path, *STEPS, resume=True))
    assert {name: values[done:] for name, values in whole.items()} == rest


def test_a_lost_object_stops_the_run_with_the_repair_command(
    configure: Configure, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configured(configure, cache, "lost", 0)
    for lost in (cache / "buckets").glob("*/deltas/c"):
        shutil.rmtree(lost)
    assert main(["train", "--config-file", str(path)]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "deltas" in error and "is absent although its shard is committed" in error
    assert f"python -m storage repair {cache}" in error


@pytest.mark.parametrize("error", [MissingShardError, StoreAccessError])
def test_a_store_that_is_gone_stops_the_run_and_keeps_what_was_trained(
    configure: Configure, cache: Path, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = configured(configure, cache, "gone", 0)
    calls: list[Sequence[int]] = []
    read_each = CacheReader.read_each

    def fails_later(self: CacheReader, records: Sequence[int]) -> Any:
        calls.append(records)
        if len(calls) > 5:
            raise error("the store cannot be reached")
        return read_each(self, records)

    monkeypatch.setattr(CacheReader, "read_each", fails_later)
    with pytest.raises(error, match="cannot be reached"):
        train(path, *STEPS)
    saved = torch.load(cache.parent / "gone" / "model_0000004.pth", weights_only=True)
    assert saved["iteration"] == 4 and saved["trainer"]["iteration"] == 4
    assert len(saved["rank_state"]["ranks"]) == 1


def test_a_run_that_fails_at_its_first_batch_writes_no_checkpoint(
    configure: Configure, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: CacheReader, records: Sequence[int]) -> Any:
        raise StoreAccessError("the store cannot be reached")

    monkeypatch.setattr(CacheReader, "read_each", fails)
    with pytest.raises(StoreAccessError):
        train(configured(configure, cache, "first", 0), *STEPS)
    assert not list((cache.parent / "first").glob("model_*"))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB, where the test may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
    if not shutil.which("mount") or subprocess.run(command, check=False).returncode:
        pytest.skip("cannot mount a small tmpfs")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


@pytest.mark.parametrize("room", [0, 10_000, 60_000, 400_000])
def test_a_full_disk_stops_a_training_in_one_line(
    configure: Configure, small_disk: Path, room: int, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configure("exact", OUTPUT_DIR=str(small_disk / "output"))  # type: ignore[arg-type]
    (small_disk / "ballast").write_bytes(b"\0" * ((1 << 20) - room))
    assert main(["train", "--config-file", str(path), *map(str, STEPS)]) == 1
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "this log ends here" not in line]
    assert lines[-1].startswith(f"error: {small_disk}") or f"'{small_disk}" in lines[-1]
    assert "ree some" in lines[-1]
    assert "Traceback" not in captured.err + captured.out
    assert captured.err.count("this log ends here") <= 2


def test_an_image_worker_that_is_killed_stops_a_training_in_one_line(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes: dict[str, Any] = {"DATALOADER": {"NUM_WORKERS": 1}}
    path = configure("exact", **nodes)

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    monkeypatch.setattr("stage2_distill.data.render", die)
    assert main(["train", "--config-file", str(path), *map(str, STEPS)]) == 1
    captured = capsys.readouterr()
    assert captured.err.splitlines()[-1].startswith("error: the image workers failed: one of them")
    assert "Traceback" not in captured.err + captured.out


def test_a_run_that_fails_in_its_last_step_is_not_evaluated(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = build(configure(), "SOLVER.MAX_ITER", 2)
    loop = trainer._trainer
    forward = loop._forward

    def diverges(part: Any) -> Any:
        losses = forward(part)
        return {k: v * float("nan") for k, v in losses.items()} if loop.iter == 1 else losses

    monkeypatch.setattr(loop, "_forward", diverges)
    with pytest.raises(FloatingPointError, match=r"iteration 1, images .*: loss_cls is nan"):
        trainer.train()
    assert not (Path(trainer.cfg.OUTPUT_DIR) / "inference").exists()
    assert not (Path(trainer.cfg.OUTPUT_DIR) / "student_final.pth").exists()
