"""The front door of all commands: help that answers at once and ends with an example that holds."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import benchmarks
from configs.loader import load_config

ROOT = Path(__file__).parent.parent
PACKAGES = ("dataset", "detectors", "stage1_dump", "stage2_distill", "storage")
# What takes a second or more to import, and what no help has a use for.
SLOW = ("torch", "torchvision", "detectron2", "pycocotools", "matplotlib")
UNUSED = (*SLOW, "zarr", "numpy", "tqdm", "yaml")


def commands() -> Iterator[str]:
    """Names of modules with a command line: `python -m NAME`, but a path for a script."""
    yield from PACKAGES
    for module in pkgutil.iter_modules(benchmarks.__path__):
        if "ArgumentParser(" in (ROOT / f"benchmarks/{module.name}.py").read_text():
            yield f"benchmarks.{module.name}"
    yield from ("tools/setup_env.py", "tools/carry.py")


def parser_of(command: str, monkeypatch: pytest.MonkeyPatch) -> argparse.ArgumentParser:
    """The parser that a command makes, caught before it parses anything."""
    caught = []

    def catch(self: argparse.ArgumentParser, *_: object, **__: object) -> None:
        caught.append(self)
        raise SystemExit

    name = command.removesuffix(".py").replace("/", ".")
    module = importlib.import_module(f"{name}.__main__" if name in PACKAGES else name)
    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(argparse.ArgumentParser, "parse_args", catch)
        module.main([])
    return caught[0]


def with_subcommands(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


@pytest.mark.parametrize("command", list(commands()))
def test_every_help_ends_with_an_example_that_the_command_accepts(
    command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    parser = parser_of(command, monkeypatch)
    for one in with_subcommands(parser):
        _, heading, example = one.format_help().rpartition("\n\nexample:\n  ")
        assert heading, f"{one.prog}: no example at the end of its help"
        assert example.startswith(f"{one.prog} ") and example.count("\n") == 1
        args = parser.parse_args(shlex.split(example.removeprefix(parser.prog)))
        if "config_file" in args:
            load_config(str(ROOT / args.config_file), args.opts)


def _imported(script: str, modules: tuple[str, ...]) -> set[str]:
    """Which of these modules a script imports, in a process of its own."""
    ending = f"\nprint(*sorted(set(sys.modules) & set({modules!r})), file=sys.stderr)"
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{script}{ending}"],
        capture_output=True, text=True, check=False, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return set(done.stderr.splitlines()[-1].split())  # warnings come before


def _run_help(programs: list[list[str]]) -> str:
    """A script that asks each `python -m PROGRAM` for help."""
    return f"""
import runpy
for program in {programs!r}:
    sys.argv = [*program, "--help"]
    try:
        runpy.run_module(program[0], run_name="__main__", alter_sys=True)
    except SystemExit as end:
        assert not end.code
"""


@pytest.mark.parametrize("package", PACKAGES)
def test_help_imports_nothing_that_takes_time(
    package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = [one.prog.split()[2:] for one in with_subcommands(parser_of(package, monkeypatch))]
    assert len(programs) > 2
    assert _imported(_run_help(programs), UNUSED) == set()


def test_help_of_the_benchmarks_imports_neither_pytorch_nor_detectron2() -> None:
    programs = [[command] for command in commands() if command.startswith("benchmarks.")]
    assert len(programs) > 5
    assert _imported(_run_help(programs), SLOW) == set()
