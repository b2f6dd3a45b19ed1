"""What a plan says of requests and bytes a second is what reading and writing a cache make."""

import json
from pathlib import Path
from typing import Any

import pytest
from zarr.abc.store import ByteRequest
from zarr.core.buffer import Buffer, BufferPrototype, cpu
from zarr.storage import MemoryStore

from configs.loader import load_config
from detectors import Setup, training_images
from detectors.command import register_data
from stage1_dump.__main__ import main, parse
from stage1_dump.estimate import Estimate, estimate
from stage1_dump.prepare import prepare
from stage2_distill.cache_check import open_cache
from storage import CacheReader, local
from storage.location import Location
from tests.stage1_dump.conftest import IMAGES, Configure
from tests.stage1_dump.helpers import dump, store_bytes

Capture = pytest.CaptureFixture[str]


class CountingStore(MemoryStore):
    """An object store that notes each request: key and bytes given."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        super().__init__({key: cpu.Buffer.from_bytes(data) for key, data in objects.items()})
        self.made: list[tuple[str, int]] = []

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        found = await super().get(key, prototype, byte_range)
        self.made.append((key, len(found) if found else 0))
        return found


def announced(config: Path) -> Estimate:
    cfg = load_config(str(config))
    register_data(cfg)
    return estimate(prepare(cfg), images_per_sec=50)


def counted_locally(folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """The list to which every read of a file is added from now on."""
    made: list[tuple[str, int]] = []
    original = local.read_range

    def read_range(path: str, start: int, end: int) -> memoryview | None:
        found = original(path, start, end)
        made.append((Path(path).relative_to(folder).as_posix(), len(found or b"")))
        return found

    monkeypatch.setattr(local, "read_range", read_range)
    return made


@pytest.mark.parametrize("kind", ["local", "object store"])
@pytest.mark.parametrize("preset", ["exact", "balanced", "compact"])
def test_reading_takes_the_announced_requests_and_bytes(
    configure: Configure, preset: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(VIEWS={"NUM": 2}, CACHE={"PRESET": preset})
    dump(config)
    said = announced(config).read
    setup = Setup(load_config(str(config)))
    reader = open_cache(setup, training_images(setup))  # as training opens it
    folder = config.with_suffix("")
    if kind == "local":
        made = counted_locally(folder, monkeypatch)
    else:
        store = CountingStore(store_bytes(folder))
        reader, made = CacheReader(Location(store)), store.made
    made.clear()
    records = range(len(reader))
    reader.read_many(records)
    commits = [key for key, _ in made if key.startswith("commits/")]
    assert len(commits) == said.commit_requests == len(set(commits))
    made.clear()
    reader.read_many(records)  # commits are kept
    assert said.requests_per_record == 4  # each signal, and all that is small
    assert len(made) == 4 * len(records)
    taken = sum(size for _, size in made) / len(records)
    assert said.bytes_per_record == pytest.approx(taken, rel=1e-3 if preset == "compact" else 1e-9)
    made.clear()
    reader.read(3)  # alone, or in a batch: as many
    assert len(made) == 4
    assert said.requests_per_sec == 50 * said.requests_per_record
    assert said.bytes_per_sec == 50 * said.bytes_per_record


def plan(config: Path, *options: str, capture: Capture) -> str:
    assert main(["plan", *options, "--config-file", str(config)]) == 0
    return capture.readouterr().out


def test_the_dump_writes_what_the_plan_says_at_its_rate(
    configure: Configure, capsys: Capture
) -> None:
    config = configure()
    said: dict[str, Any] = json.loads(plan(config, "--rate", "5", "--json", capture=capsys))
    dump(config)
    written = store_bytes(config.with_suffix(""))
    seconds = len(IMAGES) / 5
    assert said["write"]["objects_per_sec"] == pytest.approx(len(written) / seconds)
    size = sum(map(len, written.values()))
    assert said["write"]["bytes_per_sec"] == pytest.approx(size / seconds, rel=0.01)


def test_the_rates_are_said_in_a_line_each(configure: Configure, capsys: Capture) -> None:
    config = configure(CACHE={"PRESET": "balanced"})
    text = plan(config, capture=capsys)
    assert "training at 100 images/s reads " in text
    assert "the dump then writes" not in text  # its rate is not known
    text = plan(config, "--rate", "5", "--images-per-sec", "7.5", capture=capsys)
    said = json.loads(plan(config, "--images-per-sec", "7.5", "--json", capture=capsys))
    assert said["write"] is None
    requests = said["read"]["requests_per_record"]
    (line,) = [line for line in text.splitlines() if line.startswith("training at ")]
    assert line.startswith("training at 7.5 images/s reads ")
    assert f"B/s in {7.5 * requests:.0f} requests/s ({requests} per record)" in line
    assert text.index("the dump then writes ") == text.index("(as given)\n") + len("(as given)\n")


@pytest.mark.parametrize("given", ["0", "-1", "many", "inf"])
def test_no_images_a_second_are_refused(given: str, capsys: Capture) -> None:
    with pytest.raises(SystemExit):
        parse(["plan", "--images-per-sec", given, "--config-file", "x.yaml"])
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.endswith(f"--images-per-sec: expected a number above 0, got {given}")
