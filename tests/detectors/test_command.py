"""What a user reads when a command fails, and its exit code."""

import signal
from pathlib import Path

import pytest

from detectors.__main__ import main
from detectors.command import one_line, run_command
from detectors.stopping import Interrupted


def failing(error: BaseException) -> int:
    def command() -> int:
        raise error

    return run_command(command)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("what to do"), "error: what to do\n"),
        (FileNotFoundError("weights not found: x.pth"), "error: weights not found: x.pth\n"),
        (KeyboardInterrupt(), "interrupted\n"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(
    error: BaseException, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(error) == 1
    assert capsys.readouterr().err == message


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_is_one_line_and_the_exit_code_of_a_shell(
    number: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(Interrupted(number, "saved after iteration 3")) == code
    name = signal.Signals(number).name
    assert capsys.readouterr().err == f"interrupted by {name}; saved after iteration 3\n"


def test_a_full_gpu_names_the_settings_that_lower_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert failing(RuntimeError("CUDA out of memory. Tried to allocate 2 GiB")) == 1
    assert "lower SOLVER.IMS_PER_BATCH" in capsys.readouterr().err


def test_our_own_mistakes_keep_their_traceback() -> None:
    with pytest.raises(RuntimeError, match="a bug"):
        failing(RuntimeError("a bug"))


def test_an_error_of_another_process_loses_its_traceback() -> None:
    text = "Caught ValueError in worker.\nOriginal Traceback:\n  File x\nValueError: a.png: broken"
    assert one_line(ValueError(text)) == "a.png: broken"


def test_an_error_of_a_rank_is_one_line_too(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text(
        "VERSION: 2\nMODEL: {DEVICE: cpu, META_ARCHITECTURE: RetinaNet}\n"
        f"OUTPUT_DIR: {tmp_path}\nDATASET: {{FOLDER: {tmp_path / 'nothing'}}}\n"
    )
    assert main(["eval", "--config-file", str(config), "--num-gpus", "2"]) == 1
    assert capfd.readouterr().err.rstrip().splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize("arguments", [[], ["train"], ["tune", "--config-file", "x.yaml"]])
def test_wrong_use_is_exit_code_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
