"""Take the project to a machine without network, such as a GPU node of a cluster.

    python tools/carry.py pack wheels --python 3.12      here, in the project's environment
    python3 tools/carry.py run wheels -m benchmarks.gpu  there, in a copy of the project

`pack` fetches wheels of everything that this environment has and the project needs, for the other
machine's Python on x86-64 Linux. PyTorch and torchvision stay behind: they are large, and must fit
the other machine's driver. `run` needs the standard library and pip alone; it unpacks the wheels
once into `wheels/site`, in front of what is installed there, and runs a module or script.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PIN = ROOT / "requirements" / "detectron2.txt"
PROJECT = "gid-teacher-cache"
# Extras that the tests need, without the S3 server and the linters.
TOOLS = ("pytest", "hypothesis")
LEFT_BEHIND = ("torch", "torchvision")
PLATFORMS = (
    "manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_17_x86_64",
    "manylinux2014_x86_64", "manylinux1_x86_64",
)  # fmt: skip
DONE = "complete"
EXAMPLE = "example:\n  {}"
VERBATIM = argparse.RawDescriptionHelpFormatter


class CarryError(Exception):
    """Something that the user can mend; its text is the whole message."""


def needed(names: Iterable[str], without: Iterable[str] = ()) -> "dict[str, str]":
    """Find what the named distributions need, as this environment has it.

    Args:
        names: distributions to start from; they are part of the result.
        without: distributions that are left out, with what only they need.

    Returns:
        Version by normalised name.

    Raises:
        CarryError: something that is needed is not installed here.
    """
    from importlib.metadata import PackageNotFoundError, distribution

    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    left_out = {canonicalize_name(name) for name in without}
    found: dict[str, str] = {}
    waiting = [canonicalize_name(name) for name in names]
    while waiting:
        name = waiting.pop()
        if name in found or name in left_out:
            continue
        try:
            here = distribution(name)
        except PackageNotFoundError:
            raise CarryError(f"{name} is not installed here: run `make setup` first") from None
        found[name] = here.version
        for text in here.requires or ():
            one = Requirement(text)
            if one.marker is None or one.marker.evaluate({"extra": ""}):
                waiting.append(canonicalize_name(one.name))
    return found


def pack(folder: Path, python_version: str, without: Iterable[str]) -> None:
    """Fetch the wheels into a folder.

    Raises:
        CarryError: something has no wheel for that Python, or could not be fetched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = needed([PROJECT, *TOOLS], [*LEFT_BEHIND, *without])
    wanted.pop(PROJECT)
    pip = [sys.executable, "-m", "pip"]
    for name, version in sorted(wanted.items()):
        target = ["--no-deps", "--only-binary=:all:", "--dest", str(folder), f"{name}=={version}"]
        fetch = [*pip, "download", "--quiet", *_for(python_version), *target]
        # What is published as source alone is built here, and fits if it has no compiled part.
        build = [*pip, "wheel", "--quiet", "--no-deps", "-w", str(folder), f"{name}=={version}"]
        if not _succeeds(fetch, quiet=True) and not (_succeeds(build) and _is_pure(folder, name)):
            raise CarryError(f"{name} {version} has no wheel for Python {python_version} on Linux")
    hashes = ["--no-deps", "--only-binary=:all:", "--dest", str(folder), "--require-hashes"]
    if not _succeeds([*pip, "download", "--quiet", *_for("3.10"), *hashes, "-r", str(PIN)]):
        raise CarryError("the pinned detectron2 could not be fetched; pip's own message is above")
    wheels = list(folder.glob("*.whl"))
    size = sum(path.stat().st_size for path in wheels)
    print(f"{folder}: {len(wheels)} wheels, {size / 1e6:.0f} MB, for Python {python_version}")


def unpack(folder: Path) -> Path:
    """Install the wheels of a folder into its `site`, unless that was done, and give its path.

    Raises:
        CarryError: there are no wheels, or they do not fit this Python.
    """
    site = folder.resolve() / "site"
    if (site / DONE).exists():
        return site
    wheels = sorted(folder.glob("*.whl"))
    if not wheels:
        raise CarryError(f"{folder}: no wheels; make them with `tools/carry.py pack` elsewhere")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps"]
    target = ["--no-compile", "--upgrade", "--target", str(site)]
    pinned = [path for path in wheels if path.name.startswith("sal_detectron2")]
    others = [str(path) for path in wheels if path not in pinned]
    # Its tag names CPython 3.10 because of one compiled file that is not used here.
    links = ["--only-binary=:all:", *_for("3.10", platforms=()), "--find-links", str(folder)]
    for command in (
        [*pip, *target, *others] if others else [],
        [*pip, *target, *links, "--require-hashes", "-r", str(PIN)] if pinned else [],
    ):
        if command and not _succeeds(command):
            raise CarryError(
                f"{folder}: the wheels do not fit Python {sys.version.split()[0]}; pip's own "
                "message is above. Name this Python with `pack --python`"
            )
    (site / DONE).touch()
    return site


def run(folder: Path, command: "list[str]") -> int:
    """Run a Python command with the wheels of a folder in front; its exit code."""
    path = [str(ROOT), str(unpack(folder)), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(part for part in path if part)}
    return subprocess.run([sys.executable, *command], env=environment, check=False).returncode


def _for(python_version: str, platforms: Iterable[str] = PLATFORMS) -> Iterator[str]:
    yield from ("--python-version", python_version, "--implementation", "cp")
    for platform in platforms:
        yield from ("--platform", platform)


def _succeeds(command: "list[str]", *, quiet: bool = False) -> bool:
    output = subprocess.DEVNULL if quiet else None
    return subprocess.run(command, check=False, stderr=output).returncode == 0


def _is_pure(folder: Path, name: str) -> bool:
    return any(folder.glob(f"{name.replace('-', '_')}-*-none-any.whl"))


def parse(argv: "list[str] | None") -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Take the project to a machine without network.",
        epilog=EXAMPLE.format("%(prog)s pack wheels --python 3.12"), formatter_class=VERBATIM,
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True)
    packing = commands.add_parser(
        "pack",
        help="fetch wheels for another machine's Python",
        epilog=EXAMPLE.format("%(prog)s wheels --without numpy --without pillow"),
        formatter_class=VERBATIM,
    )
    packing.add_argument("folder", type=Path)
    packing.add_argument("--python", default="3.12", metavar="X.Y", help="default: 3.12")
    packing.add_argument(
        "--without", action="append", default=[], metavar="NAME",
        help="leave out a package that the other machine has; may be given again",
    )  # fmt: skip
    running = commands.add_parser(
        "run", help="run a Python command with the wheels in front",
        epilog=EXAMPLE.format("%(prog)s wheels -m benchmarks.gpu"), formatter_class=VERBATIM,
    )  # fmt: skip
    running.add_argument("folder", type=Path)
    running.add_argument("python_arguments", nargs=argparse.REMAINDER, metavar="-m MODULE ...")
    return parser.parse_args(argv)


def main(argv: "list[str] | None" = None) -> int:
    """Run the command line; 1 with one sentence where it cannot be done."""
    arguments = parse(argv)
    try:
        if arguments.command == "run":
            return run(arguments.folder, arguments.python_arguments)
        pack(arguments.folder, arguments.python, arguments.without)
    except CarryError as error:
        print(f"carry: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
