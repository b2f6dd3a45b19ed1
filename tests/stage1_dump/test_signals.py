"""A dump of some signals or levels alone, CACHE.SIGNALS and CACHE.LEVELS."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from detectors import DenseOutputs
from stage1_dump.__main__ import main
from stage1_dump.teacher import Teacher
from storage import CacheReader, Geometry, verify
from storage.codecs.dense import Dense
from tests.stage1_dump.conftest import Configure
from tests.stage1_dump.helpers import dump

Capture = pytest.CaptureFixture[str]

SIGNALS = ("deltas", "features", "scores")
LEVELS = ("p3", "p4", "p5", "p6", "p7")
ANCHORS = 3  # per position

# What chooses a part in the node CACHE, and the signals and levels that are then stored.
Part = tuple[dict[str, object], Sequence[str], Sequence[str]]
PARTS: dict[str, Part] = {
    "features": ({"SIGNALS": ["features"]}, ["features"], LEVELS),
    "heads": ({"SIGNALS": ["scores", "deltas"]}, ["deltas", "scores"], LEVELS),
    "without p3": ({"LEVELS": ["p4", "p5", "p6", "p7"]}, SIGNALS, LEVELS[1:]),
    "both": ({"SIGNALS": ["features"], "LEVELS": ["p7", "p4"]}, ["features"], ["p4", "p7"]),
}


@pytest.fixture(params=list(PARTS))
def part(request: pytest.FixtureRequest) -> Part:
    return PARTS[request.param]


def on_levels(name: str, values: np.ndarray, geometry: Geometry, kept: Sequence[str]) -> np.ndarray:
    """Of a signal of all levels, (C, S) or (R, ...), what belongs to some of them."""
    axis, step = (1, 1) if name == "features" else (0, ANCHORS)
    ranges = dict(zip(LEVELS, pairwise(geometry.level_offsets), strict=True))
    places = [np.arange(*ranges[level]) for level in kept]
    of_places = np.split(values, geometry.num_positions, axis=axis)  # step wide each
    assert of_places[0].shape[axis] == step
    return np.concatenate([of_places[place] for place in np.concatenate(places)], axis=axis)


def test_a_record_holds_what_was_chosen_as_a_whole_dump_has_it(
    reference: Path, configure: Configure, part: Part
) -> None:
    cache, signals, levels = part
    config = configure(VIEWS={"NUM": 2}, CACHE=cache)
    dump(config)
    whole, ours = CacheReader(reference), CacheReader(config.with_suffix(""))
    assert list(ours.manifest.signals) == list(signals)
    assert list(ours.manifest.levels) == list(levels)
    chosen = {f"{name}.values" for name in signals}
    small = {"detections", "pixels_crc32c", "pixels_sample"}
    for record in range(len(whole)):
        found, wanted = ours.read(record), whole.read(record)
        assert found.keys() == chosen | small
        for name in signals:
            kept = on_levels(name, wanted[f"{name}.values"], whole.geometry_of(record), levels)
            assert np.array_equal(found[f"{name}.values"], kept)
        assert all(np.array_equal(found[name], wanted[name]) for name in small)


def run(capsys: Capture, *arguments: object) -> dict[str, Any]:
    assert main([str(one) for one in arguments]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


def test_the_commands_work_on_such_a_cache(
    configure: Configure, images_folder: Path, reference: Path, capsys: Capture, part: Part
) -> None:
    nodes, signals, _ = part
    config = configure(CACHE={**nodes, "PRESET": "balanced"})
    cache = config.with_suffix("")
    planned = run(capsys, "plan", "--json", "--config-file", config)["presets"]["balanced"]
    dump(config)
    sizes = {path: path.stat().st_size for path in cache.rglob("c/*/*")}
    written = {
        name: sum(size for path, size in sizes.items() if name in path.parts)
        for name in (*signals, "record")
    }
    assert planned["array_bytes"] == written
    assert verify(cache, level="deep").problems == ()
    checked = run(capsys, "check", "--json", "--config-file", config)
    assert checked["agrees"] and checked["records"] == 10
    annotations = images_folder / "annotations" / "instances_train.json"
    ap = [
        run(capsys, "evaluate", "--json", one, "--view", 0, "--annotations", annotations)["views"]
        for one in (cache, reference)
    ]
    assert ap[0] == ap[1]


@pytest.mark.parametrize(
    ("cache", "said"),
    [
        (
            {"SIGNALS": ["features", "logits"]},
            "CACHE.SIGNALS: 'logits', expected some of features, scores, deltas, which a RetinaNet"
            " has",
        ),
        (
            {"LEVELS": ["p2"]},
            "CACHE.LEVELS: 'p2', expected some of p3, p4, p5, p6, p7, which a RetinaNet has",
        ),
    ],
)
@pytest.mark.parametrize("command", ["run", "plan", "check"])
def test_an_unknown_name_is_refused_in_a_line_that_lists_those_there_are(
    configure: Configure, capsys: Capture, command: str, cache: dict[str, object], said: str
) -> None:
    config = configure(CACHE=cache)
    assert main([command, "--config-file", str(config)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line == f"error: {said}"
    assert not config.with_suffix("").exists()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        (
            {},
            {"SIGNALS": ["features", "scores"]},
            r"signals.deltas: stored {.*}, wanted \(absent\)",
        ),
        (
            {"SIGNALS": ["features", "scores"]},
            {},
            r"signals.deltas: stored \(absent\), wanted {.*}",
        ),
        ({"LEVELS": ["p4", "p5"]}, {"LEVELS": ["p5"]}, r"levels.p4: stored 16, wanted \(absent\)"),
    ],
)
def test_other_signals_or_levels_are_another_cache(
    configure: Configure, capsys: Capture, before: Any, after: Any, said: str
) -> None:
    dump(configure(CACHE=before))
    config = str(configure(CACHE=after))
    assert main(["run", "--config-file", config]) == 1
    *_, line = capsys.readouterr().err.strip().splitlines()
    assert re.fullmatch(f"  {said}", line)
    assert main(["plan", "--config-file", config]) == 0
    *_, line = capsys.readouterr().out.splitlines()
    assert re.fullmatch(f"warning: .* is another cache than the one asked for: {said}", line)
    # It compares what is there, and says that the config asks for something else.
    assert main(["check", "--config-file", config]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert re.fullmatch(f"not of this config: {said}", lines[0])
    assert sum(line.startswith("not ") for line in lines) == 1


def test_a_level_of_another_stride_than_its_backbone_states_is_named(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Teacher.run

    def finer(self: Teacher, images: list[Tensor]) -> DenseOutputs:
        outputs = run(self, images)
        p3, p4, *coarser = outputs.features
        p4 = p4.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        return replace(outputs, features=[p3, p4, *coarser])

    monkeypatch.setattr(Teacher, "run", finer)
    said = r"^teacher's level p4: got \d+x\d+ positions .*, expected \d+x\d+ by its stride of 16 px"
    with pytest.raises(ValueError, match=said):
        dump(configure())


def test_nothing_is_stored_of_a_codec_whose_records_nobody_could_read(
    configure: Configure, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Dense, "decode_unpacked", lambda self, codes, *_: codes["values"].float()[..., 1:]
    )
    config = configure(CACHE={"PRESET": "exact"})
    assert main(["run", "--config-file", str(config)]) == 1
    assert "codec dense: signal deltas: `decode` gives float32(1, " in capsys.readouterr().err
    store = config.with_suffix("")
    assert (store / "zarr.json").exists() and not (store / "commits").exists()
