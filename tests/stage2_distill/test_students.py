"""Students of all kinds, and the ways to train them that detectron2 users know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.utils.events import EventStorage

from detectors.evaluate import evaluate
from detectors.hooks import WAITING
from stage2_distill.distiller import Distiller
from tests.stage2_distill.conftest import STUDENT, Configure
from tests.stage2_distill.runs import GID_LOSSES, OWN_LOSSES, build, losses_of, train

RESNETS = STUDENT["MODEL"]["RESNETS"]


def model(**nodes: Any) -> dict[str, Any]:
    """The node MODEL of a student, some of its nodes changed."""
    from dataset.scenes import CLASS_NAMES

    found = {**STUDENT["MODEL"], **nodes}
    return {**found, "RETINANET": {**found["RETINANET"], "NUM_CLASSES": len(CLASS_NAMES)}}


@pytest.mark.parametrize(
    ("resnets", "channels"),
    [
        ({"DEPTH": 101}, 8),
        ({"DEPTH": 18, "RES2_OUT_CHANNELS": 64}, 16),
        ({"WIDTH_PER_GROUP": 8, "RES2_OUT_CHANNELS": 16}, 4),
    ],
    ids=["deeper", "shallower, wider pyramid", "wider, narrower pyramid"],
)
def test_a_student_may_differ_in_depth_width_and_channels(
    configure: Configure, resnets: dict[str, Any], channels: int
) -> None:
    fpn = {**STUDENT["MODEL"]["FPN"], "OUT_CHANNELS": channels}
    nodes = model(RESNETS={**RESNETS, **resnets}, FPN=fpn)
    losses = losses_of(train(configure("balanced", MODEL=nodes), "SOLVER.MAX_ITER", 2))
    assert losses.keys() == OWN_LOSSES | GID_LOSSES


def test_frozen_batch_norm_and_frozen_stages_stay_as_they_were(configure: Configure) -> None:
    nodes = model(
        BACKBONE={**STUDENT["MODEL"]["BACKBONE"], "FREEZE_AT": 2},
        RESNETS={**RESNETS, "NORM": "FrozenBN"},
    )
    # Nothing normalises this untrained network: small steps keep it finite.
    path = configure("balanced", MODEL=nodes, SOLVER={"BASE_LR": 1e-5})
    start = build(path).detector.state_dict()
    end = train(path).detector.state_dict()
    frozen = [n for n in start if ".norm." in n or ".stem." in n or ".res2." in n]
    assert frozen and all(torch.equal(start[name], end[name]) for name in frozen)
    assert not torch.equal(start["head.cls_score.weight"], end["head.cls_score.weight"])


def test_a_step_in_parts_sees_the_images_of_the_whole_batch(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[int]] = []
    forward = Distiller.forward

    def spy(self: Distiller, batch: list[dict[str, Any]]) -> Any:
        if self.training:
            seen.append([item["image_id"] for item in batch])
        return forward(self, batch)

    monkeypatch.setattr(Distiller, "forward", spy)
    size = ("SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 2)
    train(configure(), *size)
    whole = [seen.pop(0) for _ in range(2)]
    losses = losses_of(train(configure(), *size, "SOLVER.ACCUMULATE", 2))
    assert losses.keys() == OWN_LOSSES | GID_LOSSES
    assert seen == [batch[i : i + 2] for batch in whole for i in (0, 2)]


def test_a_step_in_parts_of_equal_counts_is_the_step_of_the_whole_batch(
    configure: Configure,
) -> None:
    """No batch norm, relations within images, and the running average where it settles."""
    nodes = {
        "MODEL": model(RESNETS={**RESNETS, "NORM": "LN"}),
        "GID": {"RELATION_SCOPE": "image"},
        "SOLVER": {"IMS_PER_BATCH": 4},
    }
    found = []
    for parts in (1, 2):
        trainer = build(configure("exact", **nodes), "SOLVER.ACCUMULATE", parts)
        pair = next(iter(trainer.build_train_loader(trainer.cfg)))[:2]
        loop = trainer._trainer
        with EventStorage() as storage:
            loop.model(pair)
            positives = storage.latest()["num_pos_anchors"][0] * len(pair)
        trainer.detector.loss_normalizer = positives * 2 / parts
        loop._data_loader_iter_obj = iter([pair * 2])
        loop.iter = 0
        with EventStorage() as storage:
            loop.run_step()
            losses = {k: v[0] for k, v in storage.latest().items() if k.startswith("loss_")}
        found.append((losses, dict(trainer.detector.named_parameters())))
    (whole, weights), (in_parts, other_weights) = found
    assert whole.keys() == OWN_LOSSES | GID_LOSSES
    assert in_parts == pytest.approx(whole, rel=1e-5)
    for name, weight in weights.items():
        torch.testing.assert_close(other_weights[name], weight, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["SOLVER.ACCUMULATE", 0],
            r"SOLVER\.ACCUMULATE: expected an integer of at least 1 and .*, got 0",
        ),
        (["SOLVER.ACCUMULATE", 2], r"IMS_PER_BATCH is 3; .* ranks times SOLVER\.ACCUMULATE 2"),
        (["SOLVER.EMA_DECAY", 1.0], r"SOLVER\.EMA_DECAY: expected .* below 1, got 1\.0"),
    ],
)
def test_a_solver_key_outside_its_limits_is_refused_before_a_model_is_built(
    configure: Configure, overrides: list[Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stage2_distill.trainer import DistillTrainer

    monkeypatch.setattr(DistillTrainer, "build_model", None)
    with pytest.raises(ValueError, match=message):
        build(configure(), *overrides)


def test_averaged_weights_are_saved_resumed_evaluated_and_exported(configure: Configure) -> None:
    keys = ("SOLVER.EMA_DECAY", 0.5, "SOLVER.MAX_ITER", 4)
    whole = train(configure(), *keys)
    output = Path(whole.cfg.OUTPUT_DIR)
    assert whole.average is not None
    average = whole.average.module.state_dict()
    assert any(not torch.equal(average[k], v) for k, v in whole.detector.state_dict().items())
    for name in ("student_final.pth", "model_ema.pth"):
        exported = torch.load(output / name, weights_only=True)["model"]
        assert all(torch.equal(exported[k], average[k]) for k in average)
    logged = whole.storage.latest()["folder_val/AP"][0]
    assert logged == evaluate(whole.cfg, whole.average.module.eval())["folder_val"]["AP"]
    # The checkpoint of step 2, gone on from.
    (output / "last_checkpoint").write_text("model_0000001.pth")
    resumed = train(configure(), *keys, resume=True)
    assert resumed.average is not None
    again = resumed.average.module.state_dict()
    assert all(torch.equal(again[k], average[k]) for k in average)


def test_periodic_evaluation_keeps_the_best_student(configure: Configure) -> None:
    trainer = train(configure(), "TEST.EVAL_PERIOD", 1, "SOLVER.MAX_ITER", 3)
    output = Path(trainer.cfg.OUTPUT_DIR)
    logged = [value for value, _ in trainer.storage.history("folder_val/AP").values()]
    note = json.loads((output / "model_best.json").read_text())
    assert len(logged) == 3 and note["folder_val/AP"] == max(logged)
    best = torch.load(output / "model_best.pth", weights_only=True)
    assert best["iteration"] == note["iteration"]
    assert best["model"].keys() == trainer.detector.state_dict().keys()
    assert (output / "last_checkpoint").read_text() == "model_final.pth"


def test_a_student_without_progress_is_exported_before_its_last_step(configure: Configure) -> None:
    nothing = ("MODEL.RETINANET.SCORE_THRESH_TEST", 0.99)  # is detected: the AP is 0 at all times
    trainer = train(configure(), *nothing, "TEST.EVAL_PERIOD", 1, "TEST.PATIENCE", 1)
    output = Path(trainer.cfg.OUTPUT_DIR)
    assert torch.load(output / "model_final.pth", weights_only=True)["iteration"] == 1
    exported = torch.load(output / "student_final.pth", weights_only=True)["model"]
    state = trainer.detector.state_dict()
    assert all(torch.equal(exported[name], state[name]) for name in exported)


def test_the_share_of_waiting_is_logged(configure: Configure) -> None:
    trainer = train(configure(), "SOLVER.MAX_ITER", 6)
    lines = (Path(trainer.cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()
    entry = {key: value for line in lines for key, value in json.loads(line).items()}
    assert 0 < entry[WAITING] < 1
