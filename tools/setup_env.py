"""Set up the Python environment of the project.

    python3 tools/setup_env.py            makes .venv and installs everything there
    python3 tools/setup_env.py --here     installs into the environment of this Python

It needs the standard library alone. Annotations that old Pythons cannot evaluate are quoted, so
that they get a sentence and not a syntax error (some clusters still have 3.6). The second run finds
the stamp of the first and ends at once.

detectron2 is not published under its own name. `requirements/detectron2.txt` pins a wheel of
upstream's Python tree by hash; its tag names CPython 3.10 because of one compiled file that the
detectors here do not use, so it is unpacked beside the other packages for any Python. A detectron2
that is there already (source build, conda-forge) is left alone.
"""

import argparse
import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MINIMUM_PYTHON = (3, 11)
DETECTRON2_PIN = Path("requirements") / "detectron2.txt"
# What decides the content of the environment.
INPUTS = (Path("pyproject.toml"), DETECTRON2_PIN, Path("tools") / "setup_env.py")
STAMP_NAME = ".setup-stamp"

FIND_DETECTRON2 = (
    "import importlib.util, sys; spec = importlib.util.find_spec('detectron2'); "
    "sys.exit(spec is None or spec.origin is None)"
)
FIND_PURELIB = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
TRY_TORCH = (
    "import torch, torchvision; "
    "torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.tensor([1.0]), 0.5)"
)
TRY_DETECTRON2 = "import detectron2.config, detectron2.modeling"


class SetupError(Exception):
    """Something that the user can mend; its text is the whole message."""


def explain_old_python(version: "tuple[int, ...]", executable: str) -> "str | None":
    """Give the sentence for a Python that is too old, None for one that will do."""
    if version[:2] >= MINIMUM_PYTHON:
        return None
    got = ".".join(str(part) for part in version[:3])
    need = ".".join(str(part) for part in MINIMUM_PYTHON)
    return (
        f"Python {need} or newer is needed (zarr 3 asks for it); {executable} is {got}. "
        f"Name a newer one, for example: make PYTHON=python{need} test"
    )


def explain_torch_failure(error_output: str) -> str:
    """Turn what Python printed when torch and torchvision did not load into what to do."""
    last_line = (error_output.strip().splitlines() or ["no message"])[-1]
    if "torchvision::nms" in error_output or "undefined symbol" in error_output:
        return (
            "torch and torchvision do not belong together. A CPU-only torch does not work with "
            "the torchvision wheel of the package index: install both from the same place, for "
            "example with: pip install --force-reinstall torch torchvision (the CUDA builds, "
            f"which also run on a CPU). Python said: {last_line}"
        )
    return f"torch and torchvision do not load: {last_line}"


def stamp_key(root: Path, version: "tuple[int, ...]", extras: str) -> str:
    """Digest what decides the content of the environment.

    The root is part of it: the project is installed editable, so a moved folder needs a new run.
    """
    digest = hashlib.sha256()
    for text in (str(root), ".".join(str(part) for part in version[:3]), extras):
        digest.update(text.encode() + b"\0")
    for name in INPUTS:
        content = (root / name).read_bytes()
        digest.update(f"{name.as_posix()} {len(content)}\0".encode() + content)
    return digest.hexdigest()


def is_current(stamp: Path, key: str) -> bool:
    """Say whether the stamp exists and is of this key."""
    try:
        return stamp.read_text(encoding="utf-8").strip() == key
    except OSError:
        return False


def write_stamp(stamp: Path, key: str) -> None:
    """Write the stamp whole or not at all."""
    partial = stamp.with_name(stamp.name + ".partial")
    partial.write_text(key + "\n", encoding="utf-8")
    os.replace(partial, stamp)


def venv_python(venv: Path) -> Path:
    """Give the interpreter inside a virtual environment."""
    return venv / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def project_command(python: str, root: Path, extras: str) -> "list[str]":
    """Give the command that installs the project editable, with its dependencies."""
    target = str(root) + (f"[{extras}]" if extras else "")
    return [python, "-m", "pip", "install", "--editable", target]


def detectron2_command(python: str, purelib: str, pin: Path) -> "list[str]":
    """Give the command that unpacks the pinned detectron2, hash-checked, for any Python."""
    return [
        *(python, "-m", "pip", "install", "--no-deps", "--only-binary=:all:"),
        *("--python-version", "3.10", "--implementation", "cp"),
        *("--target", purelib, "--upgrade", "--require-hashes", "-r", str(pin)),
    ]


def ask(python: str, code: str) -> "subprocess.CompletedProcess[str]":
    """Run a few lines in another Python; -P keeps the working directory out of its imports."""
    return subprocess.run([python, "-P", "-c", code], capture_output=True, text=True, check=False)


def run(command: "list[str]", failure: str) -> None:
    """Run a command with its output shown.

    Raises:
        SetupError: it failed.
    """
    print("+", " ".join(command), flush=True)
    if subprocess.run(command, check=False).returncode != 0:
        raise SetupError(failure)


def make_venv(venv: Path) -> str:
    """Create the virtual environment, or mend one that an interrupted run left; give its Python.

    Raises:
        SetupError: it cannot be made, or is of another Python.
    """
    python = str(venv_python(venv))
    if not os.path.exists(python) or ask(python, "import pip").returncode != 0:
        run(
            [sys.executable, "-m", "venv", str(venv)],
            f"no virtual environment could be made in {venv}: this Python lacks venv or pip (on "
            "Debian and Ubuntu they are in the package python3-venv)",
        )
    answer = ask(python, "import sys; print(*sys.version_info[:2], sep='.')")
    inside = answer.stdout.strip()
    outside = ".".join(str(part) for part in sys.version_info[:2])
    if inside != outside:
        raise SetupError(
            f"{venv} is of Python {inside or 'unknown'}, and {sys.executable} is {outside}: remove "
            f"{venv}, or name the Python that it was made with"
        )
    return python


def install(python: str, root: Path, extras: str) -> None:
    """Install the project and detectron2 into the environment of `python`, and try both.

    Raises:
        SetupError: an installation failed, or what is installed does not load.
    """
    run(
        project_command(python, root, extras),
        "the project's dependencies could not be installed; pip's own message is above",
    )
    torch = ask(python, TRY_TORCH)
    if torch.returncode != 0:
        raise SetupError(explain_torch_failure(torch.stderr))
    if ask(python, FIND_DETECTRON2).returncode != 0:
        purelib = ask(python, FIND_PURELIB).stdout.strip()
        run(
            detectron2_command(python, purelib, root / DETECTRON2_PIN),
            "detectron2 could not be installed; pip's own message is above. Any other detectron2 "
            "at or near upstream's main branch will do: install it and run this again",
        )
    detectron2 = ask(python, TRY_DETECTRON2)
    if detectron2.returncode != 0:
        last_line = (detectron2.stderr.strip().splitlines() or ["no message"])[-1]
        raise SetupError(f"the installed detectron2 does not load: {last_line}")


def set_up(arguments: argparse.Namespace) -> None:
    """Do what the command line asks.

    Raises:
        SetupError: it cannot be done.
    """
    complaint = explain_old_python(sys.version_info[:3], sys.executable)
    if complaint:
        raise SetupError(complaint)
    if arguments.here:
        install(sys.executable, ROOT, arguments.extras)
        return
    venv = Path(arguments.venv).resolve()
    key = stamp_key(ROOT, sys.version_info[:3], arguments.extras)
    stamp = venv / STAMP_NAME
    if is_current(stamp, key) and venv_python(venv).exists():
        return
    install(make_venv(venv), ROOT, arguments.extras)
    write_stamp(stamp, key)


def parse(argv: "list[str] | None") -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python tools/setup_env.py",
        description="Set up the project's Python environment.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example:\n  python tools/setup_env.py --here --extras dev",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument("--here", action="store_true", help="use the environment of this Python")
    place.add_argument("--venv", default=str(ROOT / ".venv"), help="virtual environment to make")
    parser.add_argument("--extras", default="dev,s3", help="extras to install (default: dev,s3)")
    return parser.parse_args(argv)


def main(argv: "list[str] | None" = None) -> int:
    """Run the command line; 0 on success, 1 with one sentence on failure."""
    try:
        set_up(parse(argv))
    except SetupError as error:
        print(f"setup: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
