"""Taking the project to a machine without network: what is carried, and running with it."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import pytest

from tools.carry import CarryError, main, needed, unpack


def write_wheel(folder: Path, name: str, version: str, code: str) -> None:
    """A pure wheel of one module."""
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", code)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def test_everything_that_the_project_imports_is_carried_but_not_pytorch() -> None:
    found = needed(["gid-teacher-cache", "pytest"], ["torch", "torchvision"])
    # Dependencies of dependencies too.
    assert {"zarr", "numcodecs", "donfig", "fvcore", "antlr4-python3-runtime", "pluggy"} <= set(
        found
    )
    assert not {name for name in found if name.startswith(("torch", "nvidia", "triton"))}
    assert "numpy" not in needed(["zarr"], ["numpy"])


def test_a_package_that_is_not_installed_is_named() -> None:
    with pytest.raises(CarryError, match="no-such-package is not installed here: run `make setup`"):
        needed(["no-such-package"])


def test_a_command_runs_with_the_wheels_in_front(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_wheel(tmp_path, "carried", "1.0", "PLACE = 'from the wheel'")
    command = ["run", str(tmp_path), "-c", "import carried, dataset; print(carried.PLACE)"]
    assert main(command) == 0
    assert capfd.readouterr().out.strip() == "from the wheel"
    # Unpacked once: a second run needs the wheels no more.
    next(tmp_path.glob("*.whl")).unlink()
    assert main(command) == 0
    assert main(["run", str(tmp_path), "-c", "raise SystemExit(7)"]) == 7


def test_wheels_of_another_python_are_refused_with_its_version(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other-1.0-cp27-cp27m-linux_x86_64.whl").write_bytes(b"")
    assert main(["run", str(tmp_path), "-c", ""]) == 1
    assert f"do not fit Python {sys.version.split()[0]}" in capfd.readouterr().err.splitlines()[-1]


def test_a_folder_without_wheels_says_how_to_make_them(tmp_path: Path) -> None:
    with pytest.raises(CarryError, match=r"no wheels; make them with `tools/carry.py pack`"):
        unpack(tmp_path)
