"""A run that is told to end saves its last whole step, and goes on from there alike."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.engine import HookBase

from detectors import trainer as trainer_module
from detectors.stopping import Interrupted
from stage2_distill.trainer import DistillTrainer
from tests.stage2_distill.conftest import Configure
from tests.stage2_distill.runs import build, losses_of, train

STEPS = ("SOLVER.MAX_ITER", 6, "SOLVER.CHECKPOINT_PERIOD", 100)


class At(HookBase):
    """Does something before or after one step."""

    def __init__(self, step: int, action: Callable[[], Any], when: str = "after_step") -> None:
        self._step, self._action = step, action
        setattr(self, when, self._act)

    def _act(self) -> None:
        if self.trainer.iter == self._step:
            self._action()


def interrupted(trainer: DistillTrainer) -> Interrupted:
    with pytest.raises(Interrupted) as caught:
        trainer.train()
    return caught.value


def saved_of(trainer: DistillTrainer) -> str:
    return (Path(trainer.cfg.OUTPUT_DIR) / "last_checkpoint").read_text()


@pytest.mark.parametrize(
    ("name", "when"),
    [("SIGTERM", "after_backward"), ("SIGINT", "after_step"), ("SIGUSR1", "after_step")],
)
def test_a_signal_ends_the_run_after_a_whole_step_and_it_resumes_alike(
    configure: Configure, tmp_path: Path, name: str, when: str
) -> None:
    whole = train(configure(OUTPUT_DIR=str(tmp_path / "whole")), *STEPS)
    keys = (*STEPS, "SOLVER.PREEMPTION_SIGNAL", "SIGUSR1")
    trainer = build(configure(), *keys)
    hooked = trainer._trainer if when == "after_backward" else trainer
    hooked.register_hooks([At(2, lambda: signal.raise_signal(signal.Signals[name]), when)])
    error = interrupted(trainer)
    assert str(error) == f"by {name}; saved after iteration 2, go on with --resume"
    assert saved_of(trainer) == "model_0000002.pth"
    # It is no finished run.
    assert not (Path(trainer.cfg.OUTPUT_DIR) / "inference").exists()
    rest = train(configure(), *keys, resume=True)
    for loss, values in losses_of(whole).items():
        assert losses_of(rest)[loss] == values[3:], loss
    ends = [run.detector.state_dict() for run in (whole, rest)]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ends[0])


def test_a_signal_while_waiting_for_data_ends_the_wait(configure: Configure) -> None:
    trainer = build(configure(), *STEPS)
    loader = trainer._trainer.data_loader

    def hangs() -> Any:
        for number, batch in enumerate(loader):
            if number == 2:
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)
            yield batch

    trainer._trainer.data_loader = hangs()
    assert "saved after iteration 1," in str(interrupted(trainer))
    assert saved_of(trainer) == "model_0000001.pth"


def test_a_signal_before_the_first_step_saves_nothing(configure: Configure) -> None:
    trainer = build(configure(), *STEPS)
    trainer.register_hooks([At(0, lambda: signal.raise_signal(signal.SIGTERM), "before_train")])
    assert str(interrupted(trainer)) == "by SIGTERM"
    assert not list(Path(trainer.cfg.OUTPUT_DIR).glob("model_*"))


def test_a_signal_in_an_evaluation_ends_it_and_the_step_before_it_is_saved(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = []

    def evaluate(*_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        done.append("evaluated")

    monkeypatch.setattr(trainer_module, "evaluate", evaluate)
    trainer = build(configure(), *STEPS, "TEST.EVAL_PERIOD", 2)
    assert "saved after iteration 1," in str(interrupted(trainer))
    assert saved_of(trainer) == "model_0000001.pth" and not done


def test_a_signal_in_the_last_step_leaves_a_trained_model_without_its_evaluation(
    configure: Configure,
) -> None:
    trainer = build(configure(), *STEPS)
    trainer.register_hooks([At(5, lambda: signal.raise_signal(signal.SIGTERM))])
    assert "training is done and saved, --resume evaluates it" in str(interrupted(trainer))
    output = Path(trainer.cfg.OUTPUT_DIR)
    assert saved_of(trainer) == "model_final.pth" and not (output / "inference").exists()
    train(configure(), *STEPS, resume=True)
    assert (output / "inference").exists() and (output / "student_final.pth").exists()


def start(path: Path, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "stage2_distill", "train", "--config-file", str(path)]
    return subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for(path: Path, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not path.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize(
    ("name", "code", "ranks", "to_group"),
    # As a scheduler does it, to all processes, and as `kill` does, to the first.
    [("SIGTERM", 143, 1, True), ("SIGUSR1", 138, 2, False)],
)
def test_real_processes_save_what_they_trained_and_say_so_in_one_line(
    configure: Configure, tmp_path: Path, name: str, code: int, ranks: int, to_group: bool
) -> None:
    path = configure(
        SOLVER={
            "IMS_PER_BATCH": 2, "MAX_ITER": 10_000, "CHECKPOINT_PERIOD": 3,
            "PREEMPTION_SIGNAL": "SIGUSR1",
        },
        DATALOADER={"NUM_WORKERS": 1},
    )  # fmt: skip
    process = start(path, "--num-gpus", str(ranks))
    output = tmp_path / "output"
    wait_for(output / "last_checkpoint", process)
    send = os.killpg if to_group else os.kill
    send(process.pid, signal.Signals[name])
    _, error = process.communicate(timeout=120)
    assert process.returncode == code, error
    lines = error.rstrip().splitlines()
    assert lines[-1].startswith(f"interrupted by {name}") and "Traceback" not in error, error
    saved = torch.load(output / (output / "last_checkpoint").read_text(), weights_only=True)
    assert len(saved["rank_state"]["ranks"]) == ranks
    assert saved["iteration"] == saved["trainer"]["iteration"] >= 2


def test_a_terminal_that_is_gone_ends_the_run_which_is_saved(
    configure: Configure, tmp_path: Path
) -> None:
    path = configure(SOLVER={"IMS_PER_BATCH": 2, "MAX_ITER": 10_000, "CHECKPOINT_PERIOD": 10_000})
    process, terminal = pty.fork()
    if not process:
        command = [sys.executable, "-m", "stage2_distill", "train", "--config-file", str(path)]
        os.execv(sys.executable, command)
    said = b""
    while b" iter: 19 " not in said:
        said += os.read(terminal, 1 << 16)
    os.close(terminal)  # nothing can be written there any more, neither log nor last line
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 128 + signal.SIGHUP
    output = tmp_path / "output"
    saved = torch.load(output / (output / "last_checkpoint").read_text(), weights_only=True)
    assert saved["iteration"] >= 19
