"""Fidelity: the cache beside the live teacher, for students at several stages."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.loader import load_config
from detectors import Setup, training_images
from detectors.command import register_data
from stage1_dump.dump import run as dump
from stage2_distill import fidelity
from stage2_distill.__main__ import main
from stage2_distill.fidelity import INITIAL, checkpoints_of
from stage2_distill.fidelity_result import LIMITS, Fidelity, StudentFidelity
from storage import RecordCodec
from tests.stage2_distill.conftest import Configure
from tests.stage2_distill.runs import GID_LOSSES, build, train
from tests.tiny import DETECTOR

Capture = pytest.CaptureFixture[str]


def measure(path: Path, capsys: Capture, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Run the command with --json; its exit code and what it printed last."""
    capsys.readouterr()
    code = main(["fidelity", "--json", "--views", "8", *arguments, "--config-file", str(path)])
    return code, json.loads(capsys.readouterr().out.splitlines()[-1])


def test_an_exact_cache_is_the_live_teacher_for_students_at_every_stage(
    configure: Configure, capsys: Capture
) -> None:
    path = configure()
    trainer = train(path)
    code, found = measure(path, capsys)
    assert code == 0 and found["reached"]
    assert found["views"] == 8 and found["preset"] == "exact"
    output = Path(trainer.cfg.OUTPUT_DIR)
    stages = [INITIAL, str(output / "model_0000001.pth"), str(output / "model_final.pth")]
    assert [one["student"] for one in found["students"]] == stages
    for one in found["students"]:
        assert one["errors"].keys() == GID_LOSSES
        assert one["instances"] > 0 and one["matched"] == 1.0
        assert max(one["errors"].values()) <= 1e-5 and one["cosine"] >= 0.999999
    # Another student disagrees with the teacher elsewhere.
    assert len({str(one["errors"]) for one in found["students"]}) == 3


@pytest.mark.parametrize("wrong", ["features", "scores", "deltas"])
def test_what_a_codec_spoils_is_seen_and_fails(
    configure: Configure, capsys: Capture, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    def spoiling(decode: Any) -> Any:
        def spoilt(self: RecordCodec, *args: Any) -> Any:
            decoded = decode(self, *args)
            return {**decoded, wrong: decoded[wrong] * 0.9}

        return spoilt

    for name in ("decode", "decode_placed"):
        monkeypatch.setattr(RecordCodec, name, spoiling(getattr(RecordCodec, name)))
    code, found = measure(configure(), capsys, "--student", INITIAL)
    (one,) = found["students"]
    assert code == 1 and not found["reached"]
    # Gradients of the features dwarf the others in a student that has learnt nothing.
    assert (one["cosine"] < 0.999999) == (wrong == "features")
    terms = {
        "features": {"loss_gid_feature"},
        "scores": {"loss_gid_response_cls"},
        "deltas": {"loss_gid_response_reg"},
    }[wrong]
    assert {name for name, error in one["errors"].items() if error > 1e-3} >= terms
    # Instances come from scores and boxes; features have no part in them.
    assert (one["matched"] < 1.0) == (wrong != "features")


@pytest.mark.parametrize(
    "changes", [{}, {"TEACHER": {"INHERIT": "head"}, "MODEL": {"FPN": DETECTOR["MODEL"]["FPN"]}}]
)
def test_the_initial_student_is_the_one_that_training_begins_with(
    configure: Configure, changes: dict[str, Any]
) -> None:
    trainer = build(configure(SEED=5, **changes))
    trainer.resume_or_load(resume=False)
    teachers = fidelity._teachers(trainer.setup, training_images(trainer.setup))
    student, _ = fidelity._load_student(trainer.setup, INITIAL, teachers)
    for mine, theirs in (
        (student.detector.state_dict(), trainer.detector.state_dict()),
        (
            student.trained_layers.state_dict()["gid"],
            trainer.distiller.trained_layers.state_dict()["gid"],
        ),
    ):
        assert mine.keys() == theirs.keys()
        assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def test_what_levels_left_out_of_a_cache_change_is_measured_without_a_limit(
    configure: Configure, tmp_path: Path, capsys: Capture
) -> None:
    fewer = {"LOCATION": str(tmp_path / "fewer"), "LEVELS": ["p4", "p5", "p6", "p7"]}
    path = configure(CACHE=fewer)
    dump(load_config(str(path)))
    student = ["--student", INITIAL]
    code, same = measure(path, capsys, *student)
    assert code == 0 and same["reached"] and same["limits"] is not None
    code, found = measure(path, capsys, *student, "--all-levels")
    (one,) = found["students"]
    assert code == 0 and found["limits"] is None
    assert one["matched"] < 1.0 and one["cosine"] < 0.99 and one["error"] > 0.1
    one_each = configure(CACHE=fewer, DISTILL={"METHODS": ["pkd"]})
    assert main(["fidelity", *student, "--all-levels", "--config-file", str(one_each)]) == 1
    assert "leave them out of DISTILL.METHODS" in capsys.readouterr().err


def test_all_levels_change_nothing_where_none_is_left_out(
    configure: Configure, capsys: Capture
) -> None:
    usual, whole = (
        measure(configure("balanced"), capsys, "--student", INITIAL, *more)
        for more in ([], ["--all-levels"])
    )
    assert usual == whole


def test_methods_without_a_loss_are_no_measurement(configure: Configure, capsys: Capture) -> None:
    path = configure(DISTILL={"METHODS": ["pseudo"]})
    assert main(["fidelity", "--student", INITIAL, "--config-file", str(path)]) == 1
    assert "DISTILL.METHODS ('pseudo',): no method of these has a loss" in capsys.readouterr().err


def test_a_gradient_of_zero_is_no_agreement(configure: Configure, capsys: Capture) -> None:
    path = configure(DISTILL={"METHODS": ["pkd", "cwd"]}, PKD={"WEIGHT": 0.0})
    code, found = measure(path, capsys, "--student", INITIAL)
    (one,) = found["students"]
    assert code == 0 and one["matched"] is None and one["instances"] == 0
    assert one["cosines"]["pkd"] is None and one["cosine"] == one["cosines"]["cwd"] >= 0.999999

    weightless = ["PKD.WEIGHT", "0.0", "CWD.WEIGHT", "0.0"]
    arguments = ["--views", "2", "--student", INITIAL, "--config-file", str(path)]
    assert main(["fidelity", *arguments, *weightless]) == 1
    shown = capsys.readouterr().out.splitlines()
    assert ": nothing was compared for initial: no loss has a gradient; raise" in shown[-1]
    lines = {line.split("  ")[0]: line.split() for line in shown}
    assert lines["chosen, found again"][3] == lines["cwd, cosine"][2] == "none"


def test_the_table_names_the_limits_and_the_verdict(configure: Configure, capsys: Capture) -> None:
    arguments = ["--views", "3", "--student", INITIAL, "--config-file", str(configure("balanced"))]
    code = main(["fidelity", *arguments])
    lines = capsys.readouterr().out.splitlines()
    limits = LIMITS["balanced", "float32"]
    found = {line.split("  ")[0]: line.split()[-1] for line in lines[-12:-1]}
    assert lines[-12].split() == ["initial", "limit"]
    assert found["chosen, found again"] == f"{limits.matched:.4f}"
    assert found["gid_feature, error"] == f"{limits.error:.2e}"
    assert found["gid, cosine"] == f"{limits.cosine:.7f}"
    assert "gid_relation, mean error" in found
    assert lines[-1].endswith(("within the limits", "NOT within the limits"))
    assert (code == 0) == (not lines[-1].endswith("NOT within the limits"))


def test_an_exported_student_is_one_with_the_methods_layers_beside_it(
    configure: Configure, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    path = configure()
    output = Path(train(path, "SOLVER.MAX_ITER", 1).cfg.OUTPUT_DIR)
    exported, final = (output / name for name in ("student_final.pth", "model_final.pth"))
    students = ["--student", str(exported), "--student", str(final)]
    code, found = measure(path, capsys, *students)
    ours, theirs = found["students"]
    assert code == 0
    assert ours | {"student": ""} == theirs | {"student": ""}

    final.unlink()
    code, found = measure(path, capsys)
    assert [one["student"] for one in found["students"]] == [INITIAL, str(exported)]
    assert code == 0 and found["students"][1]["instances"] == theirs["instances"]
    assert "of the methods gid: they are compared under untrained ones" in caplog.text


def test_a_method_that_a_student_was_not_trained_with_is_measured_untrained(
    configure: Configure, capsys: Capture, caplog: pytest.LogCaptureFixture
) -> None:
    final = Path(train(configure(), "SOLVER.MAX_ITER", 1).cfg.OUTPUT_DIR) / "model_final.pth"
    path = configure(DISTILL={"METHODS": ["gid", "mgd"]})
    code, found = measure(path, capsys, "--student", str(final))
    assert code == 0 and found["students"][0]["cosines"].keys() == {"gid", "mgd"}
    assert "of the methods mgd: they are compared under untrained ones" in caplog.text


def test_after_a_short_training_its_end_is_measured(configure: Configure, capsys: Capture) -> None:
    path = configure(SOLVER={"MAX_ITER": 1, "CHECKPOINT_PERIOD": 5000})
    output = Path(train(path).cfg.OUTPUT_DIR)
    code, found = measure(path, capsys)
    stages = [INITIAL, str(output / "model_final.pth")]
    assert code == 0 and [one["student"] for one in found["students"]] == stages


def test_neither_fidelity_nor_pictures_need_data_to_evaluate_on(
    configure: Configure, folder: Path, tmp_path: Path, capsys: Capture
) -> None:
    test_set = {"TRAIN": ["folder_train"], "TEST": ["coco_2017_val"]}
    path = configure(DATASETS=test_set, TEACHER={"INHERIT": "head"})
    assert measure(path, capsys, "--student", INITIAL)[0] == 0
    weights = ["MODEL.WEIGHTS", str(tmp_path / "output" / "student_final.pth")]
    train(configure(), "SOLVER.MAX_ITER", 1)
    command = ["show", "--count", "1", "--output", str(tmp_path / "pictures")]
    path = configure(DATASETS=test_set)
    assert main([*command, "--config-file", str(path), *weights]) == 0
    assert len(list((tmp_path / "pictures").iterdir())) == 1


def test_without_checkpoints_the_command_says_what_to_do(
    configure: Configure, capsys: Capture
) -> None:
    assert main(["fidelity", "--config-file", str(configure())]) == 1
    assert "train one first, with SOLVER.CHECKPOINT_PERIOD" in capsys.readouterr().err


PERIODIC = [f"model_{step:07d}.pth" for step in (99, 199, 299, 399)]


@pytest.mark.parametrize(
    ("saved", "stages"),
    [
        ([*PERIODIC, "model_final.pth", "student_final.pth"], [PERIODIC[1], "model_final.pth"]),
        (PERIODIC, [PERIODIC[1], PERIODIC[3]]),
        (PERIODIC[:1], PERIODIC[:1]),
        ([PERIODIC[0], "model_final.pth"], [PERIODIC[0], "model_final.pth"]),
        (["model_final.pth", "student_final.pth"], ["model_final.pth"]),
        (["student_final.pth"], ["student_final.pth"]),
    ],
)
def test_the_stages_are_the_beginning_the_half_and_the_end(
    tmp_path: Path, saved: list[str], stages: list[str]
) -> None:
    for name in (*saved, "model_ema.pth", "last_checkpoint"):
        (tmp_path / name).touch()
    assert [Path(one).name for one in checkpoints_of(tmp_path)] == [INITIAL, *stages]


GOOD = StudentFidelity(
    student=INITIAL,
    instances=10,
    matched=0.9,
    errors={"a": 0.03, "b": 0.0},
    mean_errors={"a": 0.05, "b": 0.0},
    cosines={"x": 1.0, "y": 0.99},
)
EMPTY = replace(GOOD, student="empty", cosines={"x": None, "y": None})


@pytest.mark.parametrize(
    "worse",
    [
        {"matched": 0.89},
        {"errors": {"a": 0.0, "b": 0.031}},
        {"errors": {"a": 0.0, "b": float("nan")}},
        {"cosines": {"x": 1.0, "y": 0.9899}},
        {"cosines": {"x": 1.0, "y": float("nan")}},
        {"cosines": {"x": None, "y": None}},
    ],
)
def test_a_student_reaches_the_limits_only_with_every_figure(worse: dict[str, Any]) -> None:
    limits = LIMITS["compact", "float32"]
    assert GOOD.reaches(limits)
    # A method whose weights are zero, and one that chooses nothing, say nothing of the others.
    assert replace(GOOD, matched=None, cosines={"x": None, "y": 0.99}).reaches(limits)
    assert not replace(GOOD, **worse).reaches(limits)


@pytest.mark.parametrize(
    ("students", "verdict"),
    [
        ((GOOD,), "within the limits"),
        ((GOOD, EMPTY), "nothing was compared for empty: no loss has a gradient; raise --v"),
        ((replace(GOOD, matched=0.89), EMPTY), "NOT within the limits"),
        ((replace(GOOD, errors={"a": float("nan"), "b": 0.0}),), "NOT within the limits"),
    ],
)
def test_the_verdict_tells_what_was_missed_from_what_was_not_compared(
    students: tuple[StudentFidelity, ...], verdict: str
) -> None:
    limits = LIMITS["compact", "float32"]
    found = Fidelity(cache="cache", preset="compact", views=3, limits=limits, students=students)
    assert found.lines()[-1].startswith(f"cache: compact, 3 views: {verdict}")
    assert found.reached == (verdict == "within the limits")


def test_fidelity_and_show_report_how_far_they_are(
    configure: Configure, capsys: Capture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = configure()
    train(config)
    monkeypatch.setattr("storage.progress.LINE_EVERY_SEC", 0.0)
    cfg = load_config(str(config))
    register_data(cfg)
    fidelity.measure(Setup(cfg), [INITIAL], 8)
    assert re.search(r"fidelity: (\d+) of \1 batches, ", capsys.readouterr().err)
    overrides = ["MODEL.WEIGHTS", f"{cfg.OUTPUT_DIR}/student_final.pth"]
    arguments = ["--output", str(tmp_path / "pictures"), "--config-file", str(config)]
    assert main(["show", "--count", "2", *arguments, *overrides]) == 0
    shown = capsys.readouterr()
    assert "pictures: 2 of 2 views, " in shown.err
    assert shown.out.count("pictures/view_") == 2
