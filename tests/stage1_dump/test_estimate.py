"""What a plan announces: shard sizes, compressed fields, and what lies at the location already."""

import json
import math
import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

import pytest

from configs.loader import load_config
from detectors import export_model
from detectors.command import register_data
from stage1_dump.__main__ import main
from stage1_dump.estimate import Estimate, estimate
from stage1_dump.plan import records_that_fit
from stage1_dump.prepare import Prepared, prepare
from storage import Geometry, Signal
from storage.codecs.dense import Dense, DenseScores
from storage.codecs.presets import CODECS, PRESETS, Table
from tests.stage1_dump.conftest import IMAGES, Configure
from tests.stage1_dump.helpers import dump, store_bytes
from tests.tiny import DETECTOR, random_detector, write_config

Capture = pytest.CaptureFixture[str]

AUTOMATIC = {"SHARD_RECORDS": 0}


def prepared(path: Path, *overrides: str) -> Prepared:
    cfg = load_config(str(path), overrides)
    register_data(cfg)
    return prepare(cfg)


def announced(path: Path, *overrides: str) -> Estimate:
    return estimate(prepared(path, *overrides))


@pytest.fixture
def grown(reference: Path, configure: Configure) -> Path:
    """The config of three views at a location that holds two of them."""
    config = configure(VIEWS={"NUM": 3})
    shutil.copytree(reference, config.with_suffix(""))
    return config


@pytest.mark.parametrize(
    ("sizes", "shard_bytes", "batch", "records"),
    [
        ([10, 100, 1], 1000, 1, 10),
        ([100], 1000, 4, 8),  # whole batches
        ([100], 350, 8, 3),  # less than one batch
        ([100], 50, 8, 1),  # one record is the least
        ([1], 2**40, 8, 2**16),  # what the format allows
    ],
)
def test_a_shard_holds_what_fits_in_whole_batches(
    sizes: Sequence[int], shard_bytes: int, batch: int, records: int
) -> None:
    assert records_that_fit(sizes, shard_bytes=shard_bytes, batch=batch) == records


def test_an_automatic_shard_keeps_its_largest_object_below_the_size_asked_for(
    configure: Configure,
) -> None:
    config = configure(CACHE=AUTOMATIC | {"SHARD_BYTES": 400_000})
    found = prepared(config)
    codec = found.codec()
    largest = max(array.num_bytes for one in found.geometries for array in codec.arrays(one))
    assert found.shard_records % 2 == 0  # TEACHER.BATCH
    assert found.shard_records > 2
    assert found.shard_records * largest <= 400_000
    assert estimate(found).shard_records == found.shard_records


def test_an_automatic_shard_does_not_depend_on_images_or_the_number_of_views(
    configure: Configure,
) -> None:
    config = configure(CACHE=AUTOMATIC | {"SHARD_BYTES": 400_000})
    few = prepared(config, "DATASET.MAX_IMAGES", "1")
    many = prepared(config, "VIEWS.NUM", "3")
    assert len(few.geometries) < len(many.geometries)
    assert few.shard_records == many.shard_records


def test_views_that_are_there_already_need_neither_time_nor_space(
    grown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = announced(grown)
    assert result.done_records == 2 * len(IMAGES)
    assert result.rate and result.rate_source == "log of this cache"
    assert result.seconds == pytest.approx(len(IMAGES) / result.rate)
    assert "done already: 20 records" in str(result)
    needed = result.presets["exact"].expected_bytes
    usage = shutil.disk_usage("/")._replace(free=needed // 2)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    assert announced(grown).warnings == []
    (warning,) = announced(grown, "CACHE.LOCATION", f"{grown}.new").warnings
    assert "are free" in warning


def test_a_given_rate_wins_over_that_of_the_log(
    grown: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", "--rate", "5", "--json", "--config-file", str(grown)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert (result["rate"], result["seconds"]) == (5.0, len(IMAGES) / 5)


def test_the_rate_can_be_measured_without_writing_anything(
    configure: Configure, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure()
    before = sorted(tmp_path.rglob("*"))
    assert main(["plan", "--measure", "3", "--json", "--config-file", str(config)]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rate_source"] == "3 batches measured here on one cpu, without writing"
    assert result["seconds"] == pytest.approx(len(IMAGES) / result["rate"])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_rate_cannot_be_measured_without_weights_or_images(
    configure: Configure, images_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = configure(TEACHER={"WEIGHTS": "nowhere.pth"})
    assert main(["plan", "--measure", "1", "--config-file", str(config)]) == 1
    assert "weights not found: nowhere.pth" in capsys.readouterr().err
    folder = Path(shutil.copytree(images_folder, tmp_path / "data"))
    (folder / "images/0002.png").write_bytes(b"")
    config = configure(DATASET={"FOLDER": str(folder)})
    assert main(["plan", "--measure", "9", "--config-file", str(config)]) == 1
    assert "0002.png" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (("VIEWS.SEED", "12"), "augmentation.seed: stored 11, wanted 12"),
        (("VIEWS.NUM", "1"), "holds 2 views, more than the plan"),
        (("DATASET.MAX_IMAGES", "8"), "2 images are gone: 33, 40"),
    ],
)
def test_another_cache_at_the_location_is_announced(
    grown: Path, overrides: tuple[str, str], said: str
) -> None:
    result = announced(grown, *overrides)
    (warning,) = result.warnings
    assert said in warning
    assert result.done_records == 0


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of an object store where nobody listens."""
    pytest.importorskip("obstore")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_ALLOW_HTTP"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")


def test_planning_for_an_object_store_asks_once_whether_it_is_there(
    configure: Configure, unreachable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A job's client would try for a minute.
    monkeypatch.setattr("storage.remote.RETRIES", None)
    result = announced(configure(), "CACHE.LOCATION", "s3://bucket/cache")
    assert (result.free_bytes, result.done_records) == (None, 0)
    (warning,) = result.warnings
    assert warning.startswith(
        "CACHE.LOCATION could not be looked at: s3://bucket/cache: the object store failed: "
    )
    assert "refused" in warning


def test_planning_does_not_wait_long_for_an_object_store_that_does_not_answer(
    configure: Configure, unreachable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_TIMEOUT", "1h")
    monkeypatch.setattr("storage.remote.ONCE_SEC", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        (warning,) = announced(configure(), "CACHE.LOCATION", "s3://bucket/cache").warnings
    assert "no answer within 0.1 s; check the endpoint in the environment" in warning


def test_planning_without_the_environment_of_the_store_is_warned_of_it(
    configure: Configure, unreachable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (warning,) = announced(configure(), "CACHE.LOCATION", "s3://bucket/cache").warnings
    assert "AWS_SECRET_ACCESS_KEY is not" in warning


@pytest.mark.s3
def test_planning_for_a_bucket_that_is_not_there_is_warned_of_it(
    s3_bucket: str, configure: Configure, capsys: Capture
) -> None:
    assert announced(configure(), "CACHE.LOCATION", f"{s3_bucket}/new").warnings == []
    url = f"{s3_bucket}-not/new"
    assert main(["plan", "--config-file", str(configure()), "CACHE.LOCATION", url]) == 0
    assert (
        f"warning: CACHE.LOCATION could not be looked at: {url}: the object store failed: 404 Not"
        " Found (NoSuchBucket); check the bucket's name\n"
    ) in capsys.readouterr().out


class TenthOfDeltas(Dense):
    """Values that compress to a tenth."""

    name = "tenth_of_deltas"
    compression = "zstd"

    def typical_bytes(self, signal: Signal, geometry: Geometry) -> int:
        return math.prod(signal.shape(geometry)) * 4 // 10


class WhoKnowsWhat(DenseScores):
    """Scores that compress to who knows what."""

    name = "who_knows_what"
    compression = "zstd"


def compress(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the preset `exact` compress scores and deltas."""

    def table(dtype: str = "float32") -> Table:
        return {"maps": Dense(dtype=dtype), "scores": WhoKnowsWhat(), "deltas": TenthOfDeltas()}

    monkeypatch.setitem(PRESETS, "exact", table)
    for codec in (TenthOfDeltas, WhoKnowsWhat):
        monkeypatch.setitem(CODECS, codec.name, codec)


def test_compressed_fields_are_bounded_and_estimated_where_their_size_is_known(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure()
    plain = announced(config).presets["exact"]
    assert plain.compressed_arrays == [] and plain.expected_bytes == plain.total_bytes
    compress(monkeypatch)
    packed = announced(config)
    size = packed.presets["exact"]
    assert size.array_bytes == plain.array_bytes
    assert size.total_bytes - size.metadata_bytes == plain.total_bytes - plain.metadata_bytes
    assert size.compressed_arrays == ["deltas", "scores"]
    assert list(size.typical_array_bytes) == ["deltas"]
    saved = size.array_bytes["deltas"] - size.typical_array_bytes["deltas"]
    assert size.expected_bytes == size.total_bytes - saved
    assert 0.85 < saved / size.array_bytes["deltas"] < 0.95
    text = str(packed)
    assert "exact (CACHE.PRESET): about " in text
    assert "estimated; " in text and "kB, before compression" in text


def test_a_preset_of_ones_own_that_holds_less_spoils_no_plan_of_another(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = announced(configure()).presets
    monkeypatch.setitem(PRESETS, "of_maps", lambda: {"maps": Dense()})
    assert announced(configure()).presets == wanted
    assert "of_maps" in announced(configure(CACHE={"SIGNALS": ("features",)})).presets
    with pytest.raises(ValueError, match=r"^preset of_maps: no codec for signal deltas"):
        announced(configure(CACHE={"PRESET": "of_maps"}))


def test_what_is_known_of_compression_does_not_change_an_automatic_shard(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configure(CACHE=AUTOMATIC | {"SHARD_BYTES": 400_000})
    before = prepared(config).shard_records
    compress(monkeypatch)
    assert prepared(config).shard_records == before


def _head(folder: Path, num_classes: int) -> dict[str, object]:
    """A node TEACHER for the tiny detector with so many classes."""
    content = {**DETECTOR, "MODEL": {**DETECTOR["MODEL"]}}
    content["MODEL"]["RETINANET"] = {**DETECTOR["MODEL"]["RETINANET"], "NUM_CLASSES": num_classes}
    config, weights = folder / "head.yaml", folder / "head.pth"
    export_model(random_detector(write_config(config, content), 0), weights)
    return {"CONFIG": str(config), "WEIGHTS": str(weights)}


def _bytes_written(store: Path) -> tuple[int, int]:
    """Bytes of a store's records, and of all else in it."""
    sizes = {key: len(content) for key, content in store_bytes(store).items()}
    of_records = sum(
        size for key, size in sizes.items() if key.startswith("buckets/") and "/c/" in key
    )
    return of_records, sum(sizes.values()) - of_records


@pytest.mark.parametrize(("side", "num_classes"), [(64, 3), (160, 20)])
def test_the_estimates_are_what_a_dump_of_each_preset_writes(
    configure: Configure, tmp_path: Path, capsys: Capture, side: int, num_classes: int
) -> None:
    nodes: dict[str, dict[str, object]] = {
        "VIEWS": {"SCALES": [side, side + 16], "MAX_SIZE": 2 * side},
        "TEACHER": _head(tmp_path, num_classes),
    }
    presets = {
        title: {"PRESET": title.split()[0], "DTYPE": title.split()[-1]}
        if " " in title
        else {"PRESET": title}
        for title in ("balanced", "compact", "exact", "exact float16")
    }
    written = {}
    for title, node in presets.items():
        config = configure(title.replace(" ", "_"), CACHE=node, **nodes)
        dump(config)
        written[title] = _bytes_written(config.with_suffix(""))
    config = configure("other", CACHE={"PRESET": "balanced"}, **nodes)
    capsys.readouterr()
    assert main(["plan", "--measure", "5", "--json", "--config-file", str(config)]) == 0
    announced = json.loads(capsys.readouterr().out)
    assert announced["presets"].keys() == written.keys()
    for title, one in announced["presets"].items():
        of_records = one["expected_bytes"] - one["metadata_bytes"]
        assert (of_records, one["metadata_bytes"]) == pytest.approx(written[title], rel=0.05)
    assert announced["presets"]["compact"]["sample"].endswith(" records measured here")
    assert announced["smaller"] == sorted(
        (title for title in written if sum(written[title]) < sum(written["balanced"])),
        key=lambda title: sum(written[title]),
    )


def test_a_dump_that_has_begun_tells_what_the_rest_will_take(configure: Configure) -> None:
    config = configure(CACHE={"PRESET": "compact"})
    dump(config)
    store = config.with_suffix("")
    of_records, _ = _bytes_written(store)
    records = {key for key in store_bytes(store) if key.startswith("buckets/") and "/c/" in key}
    shards = sorted({tuple(key.split("/")[i] for i in (1, 4)) for key in records})
    for bucket, number in shards[1::2]:  # every second shard is gone
        (store / f"commits/{bucket}/{int(number):05}.json").unlink()
        for key in records:
            if key.startswith(f"buckets/{bucket}/") and key.split("/")[4] == number:
                (store / key).unlink()
    result = announced(config)
    assert 0 < result.done_records < len(IMAGES)
    size = result.presets["compact"]
    assert size.sample == f"the {result.done_records} records that are there already"
    assert size.expected_bytes - size.metadata_bytes == pytest.approx(of_records, rel=0.05)
    assert result.presets["balanced"].sample == ""


@pytest.mark.parametrize(
    ("preset", "said"),
    [
        ("compact", None),
        ("balanced", "smaller than balanced here: compact ("),
        ("exact", "smaller than exact here: compact ("),
    ],
)
def test_one_line_says_which_presets_would_be_smaller(
    configure: Configure, preset: str, said: str | None
) -> None:
    text = str(announced(configure(CACHE={"PRESET": preset})))
    lines = [line for line in text.splitlines() if line.startswith("smaller than")]
    assert len(lines) == (said is not None)
    if said is not None:
        assert lines[0].startswith(said) and "exact float16 (" in lines[0]
