"""The set-up script explains what is wrong and does nothing twice. Nothing is installed here."""

import argparse
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tools import setup_env

PIN = setup_env.ROOT / setup_env.DETECTRON2_PIN


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with the files that decide the environment."""
    for name in setup_env.INPUTS:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"content of {name}")
    return tmp_path


def test_an_old_python_gets_a_sentence_with_both_versions() -> None:
    message = setup_env.explain_old_python((3, 10, 13), "/usr/bin/python3")

    assert message is not None
    assert "3.11 or newer is needed" in message
    assert "/usr/bin/python3 is 3.10.13" in message
    assert "make PYTHON=" in message


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 12, 1), (4, 0, 0)])
def test_a_new_enough_python_passes(version: tuple[int, ...]) -> None:
    assert setup_env.explain_old_python(version, "python3") is None


def test_the_minimum_is_the_one_of_the_package() -> None:
    project = tomllib.loads((setup_env.ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == ">=" + ".".join(map(str, setup_env.MINIMUM_PYTHON))


def test_an_old_python_ends_the_script_before_anything_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 8, 18, "final", 0))

    assert setup_env.main(["--venv", str(tmp_path / "venv")]) == 1

    assert capsys.readouterr().err.startswith("setup: Python 3.11 or newer")
    assert not (tmp_path / "venv").exists()


@pytest.mark.parametrize(
    "error", ["RuntimeError: operator torchvision::nms does not exist", "x.so: undefined symbol: y"]
)
def test_a_torchvision_of_another_build_is_explained(error: str) -> None:
    message = setup_env.explain_torch_failure(f"Traceback ...\n{error}\n")

    assert "CPU-only torch does not work" in message
    assert "pip install --force-reinstall torch torchvision" in message
    assert message.endswith(error)


def test_any_other_failure_of_torch_is_quoted() -> None:
    message = setup_env.explain_torch_failure("Traceback ...\nOSError: libgomp.so.1: not found\n")
    assert message == "torch and torchvision do not load: OSError: libgomp.so.1: not found"
    assert setup_env.explain_torch_failure("").endswith("no message")


def test_the_stamp_key_changes_with_everything_that_decides_the_environment(root: Path) -> None:
    key = setup_env.stamp_key(root, (3, 11, 7), "dev")

    assert setup_env.stamp_key(root, (3, 11, 7), "dev") == key
    others = {
        setup_env.stamp_key(root, (3, 12, 1), "dev"),
        setup_env.stamp_key(root, (3, 11, 7), ""),
    }
    for name in setup_env.INPUTS:
        content = (root / name).read_text()
        (root / name).write_text(content + " ")
        others.add(setup_env.stamp_key(root, (3, 11, 7), "dev"))
        (root / name).write_text(content)
    assert key not in others
    assert len(others) == 2 + len(setup_env.INPUTS)


def test_a_stamp_is_current_only_for_its_own_key(tmp_path: Path) -> None:
    stamp = tmp_path / setup_env.STAMP_NAME
    assert not setup_env.is_current(stamp, "a")

    setup_env.write_stamp(stamp, "a")

    assert setup_env.is_current(stamp, "a")
    assert not setup_env.is_current(stamp, "b")
    assert [path.name for path in tmp_path.iterdir()] == [setup_env.STAMP_NAME]


def test_the_project_is_installed_editable_with_its_extras() -> None:
    command = setup_env.project_command("py", Path("/p"), "dev,s3")
    assert command == ["py", "-m", "pip", "install", "--editable", "/p[dev,s3]"]
    assert setup_env.project_command("py", Path("/p"), "")[-1] == "/p"


def test_detectron2_is_installed_by_hash_and_without_dependencies() -> None:
    command = " ".join(setup_env.detectron2_command("py", "/purelib", PIN))

    assert command == (
        "py -m pip install --no-deps --only-binary=:all: --python-version 3.10 "
        f"--implementation cp --target /purelib --upgrade --require-hashes -r {PIN}"
    )
    assert "--hash=sha256:" in PIN.read_text()


class Recorder:
    """Stands in for pip and for the questions to the other Python."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **failing: str) -> None:
        self.commands: list[str] = []
        self.failing = failing
        monkeypatch.setattr(setup_env, "run", lambda command, _: self.commands.append(command[-1]))
        monkeypatch.setattr(setup_env, "ask", self.ask)

    def ask(self, python: str, code: str) -> subprocess.CompletedProcess[str]:
        for name, error in self.failing.items():
            if code == getattr(setup_env, name):
                return subprocess.CompletedProcess([python], 1, "", error)
        return subprocess.CompletedProcess([python], 0, "/purelib\n", "")


def test_a_detectron2_that_is_there_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    recorder = Recorder(monkeypatch)

    setup_env.install("py", Path("/p"), "dev")

    assert recorder.commands == ["/p[dev]"]


def test_a_missing_detectron2_is_installed_after_the_project(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = Recorder(monkeypatch, FIND_DETECTRON2="")

    setup_env.install("py", Path("/p"), "dev")

    assert recorder.commands == ["/p[dev]", str(Path("/p") / setup_env.DETECTRON2_PIN)]


def test_a_torch_that_does_not_load_ends_the_set_up_before_detectron2(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorder = Recorder(monkeypatch, TRY_TORCH="torchvision::nms", FIND_DETECTRON2="")

    with pytest.raises(setup_env.SetupError, match="do not belong together"):
        setup_env.install("py", Path("/p"), "dev")

    assert recorder.commands == ["/p[dev]"]


def test_a_detectron2_that_does_not_load_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    Recorder(monkeypatch, TRY_DETECTRON2="Traceback ...\nImportError: no fvcore")

    with pytest.raises(setup_env.SetupError, match="does not load: ImportError: no fvcore"):
        setup_env.install("py", Path("/p"), "dev")


def test_the_checks_of_torch_and_detectron2_pass_here() -> None:
    # In this process, because another one would import torch anew.
    exec(setup_env.TRY_TORCH, {})
    exec(setup_env.TRY_DETECTRON2, {})
    with pytest.raises(SystemExit) as found:
        exec(setup_env.FIND_DETECTRON2, {})
    assert not found.value.code


def test_a_folder_called_detectron2_does_not_pass_for_the_package(tmp_path: Path) -> None:
    (tmp_path / "detectron2").mkdir()
    code = f"import sys; sys.path[:] = [{str(tmp_path)!r}, *sys.path[1:2]]; "

    answer = setup_env.ask(sys.executable, code + setup_env.FIND_DETECTRON2)

    assert answer.returncode == 1, answer.stderr


def test_the_second_run_installs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[str] = []
    monkeypatch.setattr(setup_env, "install", lambda python, *_: installed.append(python))
    venv = tmp_path / "venv"
    python = setup_env.venv_python(venv)
    python.parent.mkdir(parents=True)
    python.touch()
    monkeypatch.setattr(setup_env, "make_venv", lambda _: str(python))

    for _ in range(2):
        assert setup_env.main(["--venv", str(venv)]) == 0
    assert installed == [str(python)]

    # Without the interpreter the stamp says nothing.
    python.unlink()
    assert setup_env.main(["--venv", str(venv)]) == 0
    assert len(installed) == 2


def test_a_failed_run_leaves_no_stamp(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> None:
        raise setup_env.SetupError("no network")

    monkeypatch.setattr(setup_env, "make_venv", lambda _: "py")
    monkeypatch.setattr(setup_env, "install", fail)

    assert setup_env.main(["--venv", str(tmp_path)]) == 1

    assert capsys.readouterr().err == "setup: no network\n"
    assert not (tmp_path / setup_env.STAMP_NAME).exists()


def test_here_installs_into_the_running_python(monkeypatch: pytest.MonkeyPatch) -> None:
    installed: list[str] = []
    monkeypatch.setattr(setup_env, "install", lambda python, *_: installed.append(python))

    setup_env.set_up(argparse.Namespace(here=True, venv="none", extras=""))

    assert installed == [sys.executable]


def test_a_venv_of_another_python_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(python: str, code: str) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([python], 0, "3.99\n", "")

    python = setup_env.venv_python(tmp_path)
    python.parent.mkdir(parents=True)
    python.touch()
    monkeypatch.setattr(setup_env, "ask", ask)

    with pytest.raises(setup_env.SetupError, match=r"is of Python 3\.99"):
        setup_env.make_venv(tmp_path)


def test_a_command_that_fails_becomes_one_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(setup_env.SetupError, match="could not be installed"):
        setup_env.run([sys.executable, "-c", "raise SystemExit(3)"], "it could not be installed")

    assert capfd.readouterr().out.startswith("+ ")
