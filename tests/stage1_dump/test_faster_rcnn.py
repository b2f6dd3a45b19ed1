"""The dump of a two-stage teacher: its proposals are in the records beside the RPN's outputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

from detectors import export_model, family_of
from stage1_dump.__main__ import main
from stage1_dump.agreement import distances_in_value
from storage import CacheReader, RecordCodec, get_preset, verify
from tests.stage1_dump.conftest import write_dump_config
from tests.stage1_dump.helpers import dump
from tests.tiny import DETECTOR, FASTER_RCNN, random_batch, random_detector, write_config

Capture = pytest.CaptureFixture[str]

SECOND_STAGE = ["proposal_deltas", "proposal_scores", "proposals"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two_stages")
    cfg = write_config(folder / "teacher.yaml", {**DETECTOR, "MODEL": FASTER_RCNN})
    export_model(random_detector(cfg, seed=0), folder / "teacher.pth")
    return folder


def run(capsys: Capture, *arguments: object) -> dict[str, Any]:
    capsys.readouterr()
    assert main([str(one) for one in arguments]) == 0
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.mark.parametrize(
    ("cache", "levels"),
    [
        ({"PRESET": "balanced"}, ["p2", "p3", "p4", "p5", "p6"]),
        ({"PRESET": "compact", "LEVELS": ["p3", "p4", "p5", "p6"]}, ["p3", "p4", "p5", "p6"]),
    ],
)
def test_every_command_works_on_its_cache(
    tmp_path: Path,
    images_folder: Path,
    teacher: Path,
    capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
    cache: dict[str, object],
    levels: list[str],
) -> None:
    store = tmp_path / "cache"
    config = write_dump_config(store, images_folder, teacher, {"CACHE": cache})
    planned = run(capsys, "plan", "--json", "--config-file", config)
    dump(config)
    reader = CacheReader(store)
    assert list(reader.manifest.levels) == levels
    assert list(reader.manifest.signals) == ["deltas", "features", *SECOND_STAGE, "scores"]
    sizes = {path: path.stat().st_size for path in store.rglob("c/*/*")}
    written = {
        name: sum(size for path, size in sizes.items() if name in path.parts)
        for name in (*reader.manifest.signals, "record")
    }
    if cache["PRESET"] == "balanced":
        assert planned["presets"]["balanced"]["array_bytes"] == written
    assert verify(store, level="deep").problems == ()
    assert run(capsys, "check", "--json", "--config-file", config)["other_numerics"] == []
    monkeypatch.setattr("stage1_dump.numerics.device_kind", lambda device: "another machine")
    checked = run(capsys, "check", "--json", "--config-file", config)
    assert checked["other_numerics"] and checked["agrees"]
    annotations = images_folder / "annotations" / "instances_train.json"
    assert run(capsys, "evaluate", "--json", store, "--annotations", annotations)["views"]["0"]


def one_record(cfg: CfgNode, model: nn.Module) -> dict[str, torch.Tensor]:
    family = family_of(cfg)
    with torch.no_grad():
        values = family.run(model.eval(), random_batch([(64, 96)])).signals()
    return {signal.name: values[signal.name] for signal in family.signals(cfg)}


def test_proposals_may_move_but_not_be_others(tmp_path: Path, teacher: Path) -> None:
    cfg = write_config(tmp_path / "teacher.yaml", {**DETECTOR, "MODEL": FASTER_RCNN})
    live = one_record(cfg, random_detector(cfg, seed=0))
    geometry = family_of(cfg).geometry(cfg, 64, 96)
    codec = RecordCodec.of_preset(get_preset("balanced"), family_of(cfg).signals(cfg), 5)

    def codes(values: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
        found = {name: one[0].numpy() for name, one in codec.encode(values, geometry).items()}
        rest = {"pixels_crc32c": np.zeros(()), "pixels_sample": np.zeros(1)}
        return {**found, **rest, "detections": np.full((5, 6), -1, np.float32)}

    def differing(stored: dict[str, torch.Tensor]) -> list[str]:
        both = codes({**live, **stored}), codes(live)
        found = distances_in_value(*both, live, codec, geometry, noise=1e-3)
        return [one.field for one in found if not one.agrees]

    assert differing({}) == []
    assert differing({name: live[name].roll(1, dims=1) for name in SECOND_STAGE}) == []
    others = one_record(cfg, random_detector(cfg, seed=1))
    assert differing({name: others[name] for name in SECOND_STAGE}) == SECOND_STAGE
