"""Training a student: from the cache, from the live teacher, and without a teacher."""

import json
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.checkpoint import DetectionCheckpointer
from detectron2.modeling import build_model

from detectors.evaluate import evaluate
from stage2_distill.__main__ import main
from tests.fresh import stdout_of
from tests.stage2_distill.conftest import STUDENT, Configure
from tests.stage2_distill.runs import GID_LOSSES, OWN_LOSSES, build, losses_of, train, train_until
from tests.stage2_distill.test_students import model


@pytest.mark.parametrize("preset", ["exact", "balanced"])
def test_a_student_trains_from_the_cache(configure: Configure, preset: str) -> None:
    trainer = train(configure(preset))
    losses = losses_of(trainer)
    assert losses.keys() == OWN_LOSSES | GID_LOSSES
    assert all(np.isfinite(values).all() for values in losses.values())
    assert all(max(losses[name]) > 0 for name in GID_LOSSES)


def test_a_folder_of_another_run_is_resumed_or_refused(
    configure: Configure, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configure()
    folder = Path(train(path).cfg.OUTPUT_DIR)
    metrics = (folder / "metrics.json").read_bytes()
    assert main(["train", "--config-file", str(path)]) == 1
    said = capsys.readouterr().err.splitlines()[-1]
    assert f"OUTPUT_DIR {folder} holds last_checkpoint and metrics.json of an earlier run" in said
    assert (folder / "metrics.json").read_bytes() == metrics
    assert main(["train", "--config-file", str(path), "--resume"]) == 0


def test_every_loss_and_the_kinds_of_gis_are_logged(configure: Configure) -> None:
    trainer = train(configure())
    lines = (Path(trainer.cfg.OUTPUT_DIR) / "metrics.json").read_text().splitlines()
    entry = {key: value for line in lines for key, value in json.loads(line).items()}
    kinds = {f"gid/num_{kind}" for kind in ("pos", "semi_pos", "neg", "other")}
    assert OWN_LOSSES | GID_LOSSES | kinds | {"total_loss"} <= entry.keys()
    assert 0 < sum(entry[kind] for kind in kinds) <= 10


def test_the_console_tells_how_many_gis_of_which_kind_there_were(
    configure: Configure, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO"):
        train(configure())
    (line,) = [text for text in caplog.messages if "gid: num_pos: " in text]
    counts = [float(part.split(": ")[1]) for part in line.split("gid: ")[1].split("  ")]
    assert len(counts) == 4
    # Each is rounded to three digits.
    assert 0 < sum(counts) < 10.05


def test_a_live_teacher_of_another_channel_order_sees_its_own(
    configure: Configure, folder: Path
) -> None:
    text = (folder / "teacher.yaml").read_text()
    other = folder / "teacher_rgb.yaml"
    other.write_text(text + "INPUT:\n  FORMAT: RGB\n")
    bgr = losses_of(train(configure(TEACHER={"SOURCE": "live"}), "SOLVER.MAX_ITER", 1))
    rgb = losses_of(
        train(
            configure(TEACHER={"SOURCE": "live", "CONFIG": str(other)}, INPUT={"FORMAT": "RGB"}),
            "SOLVER.MAX_ITER", 1,
        )
    )  # fmt: skip
    mixed = losses_of(
        train(configure(TEACHER={"SOURCE": "live", "CONFIG": str(other)}), "SOLVER.MAX_ITER", 1)
    )
    # The student is the same and sees BGR in both; the teacher's own order makes the difference.
    assert mixed["loss_cls"] == bgr["loss_cls"] != rgb["loss_cls"]
    assert mixed["loss_gid_feature"] != bgr["loss_gid_feature"]


def test_a_student_starts_from_the_same_weights_whatever_its_teacher(configure: Configure) -> None:
    starts = [
        build(configure(TEACHER={"SOURCE": source})).detector.state_dict()
        for source in ("none", "cache", "live")
    ]
    for other in starts[1:]:
        assert all(torch.equal(starts[0][name], other[name]) for name in starts[0])


def test_without_a_teacher_there_are_only_the_detectors_own_losses(configure: Configure) -> None:
    trainer = train(configure(TEACHER={"SOURCE": "none", "CONFIG": "", "WEIGHTS": ""}))
    assert losses_of(trainer).keys() == OWN_LOSSES


def test_worker_processes_change_nothing(configure: Configure) -> None:
    alone = losses_of(train(configure("balanced")))
    helped = losses_of(train(configure("balanced", DATALOADER={"NUM_WORKERS": 2})))
    assert alone == helped


def test_the_adaptation_layer_is_trained_and_left_behind(configure: Configure) -> None:
    trainer = train(configure(), "SOLVER.MAX_ITER", 1)
    before = {k: v.clone() for k, v in trainer.distiller.trained_layers.state_dict()["gid"].items()}
    again = train(configure(), "SOLVER.MAX_ITER", 3)
    assert not torch.equal(
        before["adaptation.conv.weight"],
        again.distiller.trained_layers.state_dict()["gid"]["adaptation.conv.weight"],
    )
    output = Path(again.cfg.OUTPUT_DIR)
    exported = torch.load(output / "student_final.pth", weights_only=True)
    assert exported.keys() == {"model"}
    assert exported["model"].keys() == again.detector.state_dict().keys()
    checkpoint = torch.load(output / "model_final.pth", weights_only=True)
    assert checkpoint["model"].keys() == exported["model"].keys()
    assert {*checkpoint["methods"]} == {"gid"}
    assert checkpoint["methods"]["gid"].keys() == {
        "adaptation.conv.weight",
        "adaptation.conv.bias",
    }


def test_the_exported_student_loads_in_stock_detectron2_and_evaluates_the_same(
    configure: Configure,
) -> None:
    trainer = train(configure())
    output = Path(trainer.cfg.OUTPUT_DIR)
    model = build_model(trainer.cfg)
    rest = DetectionCheckpointer(model).load(str(output / "student_final.pth"))
    assert rest == {}
    ours = evaluate(trainer.cfg, trainer.detector.eval())["folder_val"]
    assert evaluate(trainer.cfg, model.eval())["folder_val"] == ours


def test_a_run_resumed_in_mid_epoch_has_the_losses_of_an_uninterrupted_one(
    configure: Configure,
) -> None:
    whole = losses_of(train(configure(), "SOLVER.MAX_ITER", 6))
    generators = torch.get_rng_state()
    output = ["OUTPUT_DIR", str(Path(str(configure())).parent / "resumed")]
    # Its schedule is the long one: it was stopped, not shorter.
    train_until(configure(), 4, *output)
    rest = losses_of(train(configure(), "SOLVER.MAX_ITER", 6, *output, resume=True))
    for name, values in whole.items():
        assert rest[name] == values[4:], name
    assert torch.equal(torch.get_rng_state(), generators)


def rows_of(output: Path) -> dict[int, dict[str, float]]:
    """Iteration to the metrics of its row, without those of the clock."""
    rows = [json.loads(line) for line in (output / "metrics.json").read_text().splitlines()]
    clock = {"time", "data_time", "rank_data_time", "eta_seconds", "waiting_share"}
    return {
        row["iteration"]: {k: v for k, v in row.items() if k not in clock}
        for row in rows
        if "total_loss" in row
    }


@pytest.mark.parametrize("stop", [26, 21])
def test_a_resumed_run_writes_the_metrics_of_an_uninterrupted_one(
    configure: Configure, tmp_path: Path, stop: int
) -> None:
    """Rows are medians over the last twenty steps; the runs are resumed amid such a window."""
    keys = (
        "SOLVER.MAX_ITER", 45, "SOLVER.CHECKPOINT_PERIOD", 13, "SOLVER.IMS_PER_BATCH", 1,
        "DATASETS.TEST", "()",
    )  # fmt: skip
    train(configure(), *keys, "OUTPUT_DIR", tmp_path / "whole")
    train_until(configure(), stop, *keys)
    train(configure(), *keys, resume=True)
    whole, rows = rows_of(tmp_path / "whole"), rows_of(tmp_path / "output")
    assert list(whole) == [19, 39, 44]
    assert {number: rows[number] for number in whole} == whole


def test_a_killed_run_resumes_with_the_same_losses(configure: Configure, tmp_path: Path) -> None:
    path = configure("balanced", SOLVER={"MAX_ITER": 40, "CHECKPOINT_PERIOD": 2})
    command = [sys.executable, "-m", "stage2_distill", "train", "--config-file", str(path)]
    killed = ["OUTPUT_DIR", str(tmp_path / "killed")]
    stdout_of(command)
    process = subprocess.Popen([*command, *killed], stdout=subprocess.DEVNULL)
    tag = tmp_path / "killed" / "last_checkpoint"
    deadline = time.monotonic() + 120
    while not tag.exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    stdout_of([*command, "--resume", *killed])
    final = [
        torch.load(folder / "student_final.pth", weights_only=True)["model"]
        for folder in (tmp_path / "output", tmp_path / "killed")
    ]
    assert all(torch.equal(final[0][name], final[1][name]) for name in final[0])


def test_two_ranks_distill_one_student_and_resume_as_two(configure: Configure) -> None:
    path = configure("balanced", SOLVER={"IMS_PER_BATCH": 4, "MAX_ITER": 2})
    command = ["train", "--config-file", str(path)]
    # In a process of its own, as a user starts it: the ranks are spawned from there.
    fresh = [sys.executable, "-m", "stage2_distill", *command, "--num-gpus", "2"]
    stdout_of(fresh)
    output = path.parent / "output"
    state = torch.load(output / "model_final.pth", weights_only=True)
    normalizers = [rank["loss_normalizer"] for rank in state["rank_state"]["ranks"]]
    # Each rank saw images of its own, and keeps an average of its own.
    assert len(set(normalizers)) == 2
    assert main([*command, "--num-gpus", "2", "--resume", "SOLVER.MAX_ITER", "4"]) == 0
    exported = torch.load(output / "student_final.pth", weights_only=True)["model"]
    assert any(not torch.equal(exported[name], state["model"][name]) for name in exported)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["SOLVER.IMS_PER_BATCH", "2"], "SOLVER.IMS_PER_BATCH is 2, but the run to resume had 3"),
        (
            ["SOLVER.REFERENCE_WORLD_SIZE", "3"],
            "SOLVER.IMS_PER_BATCH (SOLVER.REFERENCE_WORLD_SIZE scales it to the ranks) is 1, but",
        ),
        (["SOLVER.BASE_LR", "0.5"], "SOLVER.BASE_LR is 0.5, but the run to resume had 0.01 and"),
        (["SOLVER.WEIGHT_DECAY", "0.5"], "SOLVER.WEIGHT_DECAY is 0.5, but"),
        (["SOLVER.OPTIMIZER", "ADAMW"], "SOLVER.OPTIMIZER is 'ADAMW', but the run to resume had"),
        (["SOLVER.EMA_DECAY", "0.9"], "SOLVER.EMA_DECAY is 0.9, but the run to resume had 0.0"),
        (["SOLVER.MAX_ITER", "1"], "SOLVER.MAX_ITER is 1, but the run to resume has trained 2"),
    ],
)
def test_a_resumed_run_that_would_go_on_otherwise_is_refused(
    configure: Configure, overrides: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configure(SOLVER={"MAX_ITER": 2})
    student = Path(train(path).cfg.OUTPUT_DIR) / "student_final.pth"
    before = student.read_bytes()
    assert main(["train", "--config-file", str(path), "--resume", *overrides]) == 1
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert student.read_bytes() == before


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_an_average_goes_on_with_another_decay_but_does_not_end_half_way(
    configure: Configure, decay: float, capsys: pytest.CaptureFixture[str]
) -> None:
    path = configure(SOLVER={"MAX_ITER": 1, "EMA_DECAY": 0.9})
    train(path)
    further = ["SOLVER.MAX_ITER", "2", "SOLVER.EMA_DECAY", str(decay)]
    assert main(["train", "--config-file", str(path), "--resume", *further]) == int(decay == 0)
    refused = "SOLVER.EMA_DECAY is 0.0, but the run to resume had 0.9" in capsys.readouterr().err
    assert refused == (decay == 0)


def test_two_nodes_under_torchrun_train_what_one_process_trains(
    configure: Configure, tmp_path: Path
) -> None:
    views = {"SCALES": [64], "MAX_SIZE": 64, "NUM": 1}
    path = configure(
        VIEWS=views,
        TEACHER={"SOURCE": "none"},
        SOLVER={"IMS_PER_BATCH": 4, "MAX_ITER": 2},
        DISTILL={"COUNTS": "global"},
        DATASETS={"TEST": []},
        MODEL=model(RESNETS={**STUDENT["MODEL"]["RESNETS"], "NORM": "LN"}),
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    nodes = [
        subprocess.Popen(
            [
                sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--node-rank",
                str(rank), "--nproc-per-node", "1", "--master-addr", "127.0.0.1",
                "--master-port", str(port), "-m", "stage2_distill", "train",
                "--config-file", str(path), "OUTPUT_DIR", str(tmp_path / "nodes"),
            ],
            stdout=subprocess.DEVNULL,
        )
        for rank in range(2)
    ]  # fmt: skip
    alone = ["OUTPUT_DIR", str(tmp_path / "alone")]
    assert main(["train", "--config-file", str(path), *alone]) == 0
    assert [node.wait(timeout=300) for node in nodes] == [0, 0]
    together, single = (
        json.loads((tmp_path / name / "metrics.json").read_text().splitlines()[-1])
        for name in ("nodes", "alone")
    )
    for name in OWN_LOSSES:
        assert together[name] == pytest.approx(single[name], rel=1e-5), name


def test_a_batch_that_does_not_divide_among_the_ranks_is_refused(
    configure: Configure, capfd: pytest.CaptureFixture[str]
) -> None:
    path = configure("balanced", SOLVER={"IMS_PER_BATCH": 3})
    assert main(["train", "--config-file", str(path), "--num-gpus", "2"]) == 1
    assert "expected a multiple of the 2 ranks" in capfd.readouterr().err.splitlines()[-1]


def test_data_and_schedule_are_those_of_the_ranks_that_there_are(configure: Configure) -> None:
    """A config for two ranks, on one: the loader's batch is halved with the rest."""
    reference = ("SOLVER.REFERENCE_WORLD_SIZE", 2, "SOLVER.IMS_PER_BATCH", 4, "SOLVER.MAX_ITER", 2)
    trainer = train(configure(), *reference, "DISTILL.WARMUP_ITERS", 3)
    assert len(next(iter(trainer.build_train_loader(trainer.cfg)))) == 2
    losses = losses_of(trainer)["loss_gid_feature"]
    assert len(losses) == trainer.max_iter == 4
    whole = losses_of(train(configure(), "SOLVER.IMS_PER_BATCH", 2, "SOLVER.MAX_ITER", 1))
    assert losses[0] == pytest.approx(whole["loss_gid_feature"][0] / 6)
