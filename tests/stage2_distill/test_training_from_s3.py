"""Training from an object store: the losses of the local cache, also when the server dies."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from storage.location import Location
from tests.s3_server import BUCKET, S3Server
from tests.stage2_distill.conftest import Configure
from tests.stage2_distill.runs import build, losses_of, train

URL = f"s3://{BUCKET}/balanced"

pytestmark = pytest.mark.s3


def upload(store: Path, url: str) -> None:
    files = [path for path in store.rglob("*") if path.is_file()]
    Location(url).put_many(
        {path.relative_to(store).as_posix(): path.read_bytes() for path in files}
    )


def test_workers_read_from_s3_while_the_server_is_killed_and_started_again(
    mortal_s3: S3Server, folder: Path, configure: Configure
) -> None:
    steps = {"SOLVER": {"MAX_ITER": 12}}
    expected = losses_of(train(configure("balanced", **steps)))
    upload(folder / "balanced", URL)
    # One batch ahead, so that most are read after the server is back.
    workers = {
        "DATALOADER": {"NUM_WORKERS": 1},
        "CACHE": {"LOCATION": URL, "PREFETCH_BYTES": 1},
    }
    trainer = build(configure("balanced", **steps, **workers))
    step = trainer.run_step

    def revive() -> None:
        time.sleep(1)
        mortal_s3.start()

    revival = threading.Thread(target=revive)

    def run_step() -> None:
        if trainer.iter == 2:
            mortal_s3.kill()
            revival.start()
        step()

    trainer.run_step = run_step  # type: ignore[method-assign]
    try:
        trainer.train()
    finally:
        if revival.ident is not None:
            revival.join()
    assert losses_of(trainer) == expected
