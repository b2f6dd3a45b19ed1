"""What a user reads when a command fails, and its exit code."""

import importlib
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader, Dataset

import stage1_dump.__main__
import stage2_distill.__main__
from configs.wording import one_line
from detectors.__main__ import main
from detectors.command import run_command
from detectors.stopping import Interrupted

JOBS = [(main, "train"), (main, "eval"), (stage2_distill.__main__.main, "train")]


def failing(error: BaseException) -> int:
    def command() -> int:
        raise error

    return run_command(command)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ValueError("what to do"), "error: what to do\n"),
        (FileNotFoundError("weights not found: x.pth"), "error: weights not found: x.pth\n"),
    ],
)
def test_an_error_is_one_line_and_exit_code_1(
    error: BaseException, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert failing(error) == 1
    assert capsys.readouterr().err == message


USERS = """
import json
from configs.nodes import FieldChecks
def own(): int("x")
def of_a_library(): json.loads("")
def of_ours(): FieldChecks(None).names("x")
def quoting(): raise ValueError("it said: Traceback of another program: nope")
"""


@pytest.fixture
def users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A module of the user's."""
    (tmp_path / "my_users.py").write_text(USERS)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("my_users")
    del sys.modules["my_users"]


@pytest.mark.parametrize(
    ("name", "line"), [("own", 4), ("of_a_library", 5), ("of_ours", 0), ("quoting", 7)]
)
def test_an_error_of_the_user_s_code_names_its_place(
    users: Any, name: str, line: int, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrapped() -> int:
        try:
            return fail()
        except Exception as error:
            raise ValueError("view 3") from error

    def fail() -> int:
        try:
            getattr(users, name)()
        except AttributeError as error:  # what `FieldChecks` says of None
            raise ValueError("ours") from error
        return 0

    place = f" ({users.__file__}:{line})" if line else ""
    for command in (fail, wrapped):
        assert run_command(command) == 1
        (text,) = capsys.readouterr().err.splitlines()
        assert text.endswith(place) and text.count(users.__file__) == bool(line)


@pytest.mark.parametrize(
    ("is_named", "said"), [(False, "invalid literal for int() with base 10: 'x'"), (True, "view 3")]
)
def test_so_does_one_of_a_data_worker(users: Any, is_named: bool, said: str) -> None:
    class Items(Dataset[int]):
        def __getitem__(self, number: int) -> int:
            try:
                users.own()
            except ValueError as error:
                if is_named:
                    raise ValueError("view\n3\n\n") from error
                raise
            return number

        def __len__(self) -> int:
            return 1

    with pytest.raises(ValueError) as caught:
        next(iter(DataLoader(Items(), num_workers=1, multiprocessing_context="fork")))
    assert one_line(caught.value) == f"{said} ({users.__file__}:4)"


def test_ctrl_c_is_one_line_and_the_exit_code_of_a_shell(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert failing(KeyboardInterrupt()) == 130
    assert capsys.readouterr().err == "interrupted\n"


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
    text = (
        "Caught ValueError in DataLoader worker process 0.\n"
        "Original Traceback (most recent call last):\n  File x\nValueError: a.png: broken"
    )
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


def test_a_gpu_that_is_not_there_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = tmp_path / "c.yaml"
    config.write_text("VERSION: 2\nDATASETS: {TEST: [a]}\n")
    assert main(["eval", "--config-file", str(config), "MODEL.DEVICE", "cuda"]) == 1
    assert "MODEL.DEVICE is cuda" in capsys.readouterr().err


def refused(capsys: pytest.CaptureFixture[str], started: Any, *arguments: str) -> str:
    """The last line of a command that argparse refuses."""
    with pytest.raises(SystemExit) as caught:
        started(list(arguments))
    assert caught.value.code == 2
    return capsys.readouterr().err.splitlines()[-1]


OPTIONS: list[tuple[Any, str, str, list[str]]] = [
    *(
        (started, name, option, ["0" if option != "--machine-rank" else "-1", "1025", "two"])
        for started, name in JOBS
        for option in ("--num-gpus", "--num-machines", "--machine-rank")
    ),
    (stage1_dump.__main__.main, "run", "--num-gpus", ["0", "-1", "1025", "1.5"]),
    (stage1_dump.__main__.main, "run", "--max-restarts", ["-1", "1" * 12, "x"]),
    (stage1_dump.__main__.main, "check", "--sample", ["0", "1" * 12, "1" * 10_000, "x"]),
    (stage1_dump.__main__.main, "check", "--seed", ["-1", "1" * 12, "x"]),
    (stage1_dump.__main__.main, "plan", "--measure", ["0", "1" * 12, "x"]),
    (stage1_dump.__main__.main, "plan", "--rate", ["0", "-1", "inf", "nan", "x"]),
    (stage1_dump.__main__.main, "evaluate", "--view", ["-1", "1" * 12, "x"]),
    (stage2_distill.__main__.main, "show", "--count", ["0", "-1", "1" * 12, "x"]),
    (stage2_distill.__main__.main, "fidelity", "--views", ["0", "-1", "1" * 12, "x"]),
]


@pytest.mark.parametrize(
    ("started", "name", "option", "values"), OPTIONS, ids=lambda one: str(one)[:20]
)
def test_an_option_outside_its_limits_is_refused_by_its_name(
    started: Any, name: str, option: str, values: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    for value in values:
        line = refused(capsys, started, name, option, value, "--config-file", "x.yaml")
        assert f"argument {option}: expected a" in line
        assert line.endswith(f"got {value}")


@pytest.mark.parametrize(
    "behind",
    [
        ["MODEL.WEIGHTS", "a.pth", "--resume"],
        ["--resume", "MODEL.WEIGHTS", "--json"],
        ["MODEL.WEIGHTS", "a.pth", "-h"],
    ],
)
def test_an_option_behind_the_overrides_is_named_as_one(
    behind: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    line = refused(capsys, main, "train", "--config-file", "x.yaml", *behind)
    assert f"{behind[-1]} is an option: options go before KEY VALUE" in line


def test_so_is_the_config_file(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, main, "train", "MODEL.WEIGHTS", "a.pth", "--config-file", "x.yaml")
    assert "--config-file is an option: options go before KEY VALUE" in line


def test_a_negative_value_is_no_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("VERSION: 2\n")
    assert main(["train", "--config-file", str(config), "SOLVER.BASE_LR", "-1"]) == 1
    assert "override: SOLVER.BASE_LR: expected a number above 0" in capsys.readouterr().err


@pytest.mark.parametrize("job", [stage2_distill.__main__.main, stage1_dump.__main__.main])
@pytest.mark.parametrize("output", ["cache", "cache/log/.."])
def test_output_in_the_cache_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], job: Any, output: str
) -> None:
    config = tmp_path / "c.yaml"
    config.write_text("VERSION: 2\nDATASETS: {TRAIN: [a], TEST: [a]}\nMODEL: {DEVICE: cpu}\n")
    places = ["OUTPUT_DIR", f"{tmp_path}/{output}", "CACHE.LOCATION", f"{tmp_path}/cache"]
    name = "run" if job is stage1_dump.__main__.main else "train"
    assert job([name, "--config-file", str(config), *places]) == 1
    assert f"OUTPUT_DIR {tmp_path}/{output} lies in the cache" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("command", ["detectors train", "stage2_distill show", "stage1_dump plan"])
def test_so_is_output_in_another_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    config, place = tmp_path / "c.yaml", tmp_path / "cache" / "mine"
    config.write_text("VERSION: 2\nDATASETS: {TRAIN: [a], TEST: [a]}\nMODEL: {DEVICE: cpu}\n")
    place.parent.mkdir()
    for key in ("zarr.json", "manifest.sha256"):
        (place.parent / key).touch()
    package, name = command.split()
    job = importlib.import_module(f"{package}.__main__").main
    option = [] if name == "train" else ["--output", str(place)]
    folder = tmp_path / "output" if option else place
    assert job([name, *option, "--config-file", str(config), "OUTPUT_DIR", str(folder)]) == 1
    which = "--output" if option else "OUTPUT_DIR"
    assert f"{which} {place} lies in the cache {place.parent}:" in capsys.readouterr().err
    assert not place.exists()


def test_key_and_value_are_two_words(capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, main, "train", "--config-file", "x.yaml", "SOLVER.MAX_ITER=3")
    assert "overrides are KEY VALUE, two words each, not SOLVER.MAX_ITER=3" in line


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--num-machines", "2", "--machine-rank", "2"], "--machine-rank 2: expected less than"),
        (["--num-machines", "2"], "--dist-url auto: expected tcp://host:port"),
        (["--num-machines", "2", "--dist-url", "host:1"], "--dist-url host:1: expected tcp://"),
        (["--eval-only", "--resume"], "--resume: MODEL.WEIGHTS is evaluated"),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], named: str
) -> None:
    config = tmp_path / "c.yaml"
    nodes = "DATASETS: {TRAIN: [a], TEST: [a]}\nMODEL: {DEVICE: cpu}"
    config.write_text(f"VERSION: 2\n{nodes}\n")
    assert main(["train", "--config-file", str(config), *arguments]) == 1
    assert f"error: {named}" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--num-gpus", "--num-machines"])
def test_ranks_of_torchrun_start_no_more_processes(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    option: str,
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    config = tmp_path / "c.yaml"
    config.write_text("VERSION: 2\nDATASETS: {TEST: [a]}\nMODEL: {DEVICE: cpu}\n")
    assert main(["eval", "--config-file", str(config), option, "2"]) == 1
    assert f"{option}: this is already a rank of torchrun" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("device", "arguments", "named"),
    [
        ("cuda:2", [], "MODEL.DEVICE is cuda:2, but PyTorch sees 2 GPUs"),
        ("cuda", ["--num-gpus", "3"], "--num-gpus 3: PyTorch sees 2 GPUs"),
        ("cuda:1", ["--num-gpus", "2"], "MODEL.DEVICE is cuda:1, but 2 processes take"),
    ],
)
def test_a_gpu_that_no_rank_can_have_is_named(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    arguments: list[str],
    named: str,
) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    config = tmp_path / "c.yaml"
    config.write_text("VERSION: 2\nDATASETS: {TEST: [a]}\n")
    command = ["eval", "--config-file", str(config), *arguments, "MODEL.DEVICE", device]
    assert main(command) == 1
    assert named in capsys.readouterr().err
