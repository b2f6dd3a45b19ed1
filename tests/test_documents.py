"""What the documents say exists: their links, commands, config keys and paths."""

from __future__ import annotations

import argparse
import importlib
import io
import re
import shlex
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest

from configs.loader import default_config, load_config
from tests import test_help

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MAX_README_LINES = 150
# Where else commands are written down, as comments or to be run.
SCRIPTS = [
    ROOT / "Makefile",
    ROOT / "CHANGELOG.md",
    ROOT / "tools" / "dump_slurm.sh",
    *(path for path in sorted(ROOT.glob("configs/**/*.yaml")) if " -m " in path.read_text()),
]

PACKAGES = sorted(one.parent.name for one in ROOT.glob("*/__init__.py"))
OTHERS = {"mypy", "pip", "pytest", "ruff", "venv"}  # modules whose commands are not ours to check

_RUN = r"(?:\bpython3?|\btorchrun\b.*?|\$\(VENV\)|\$\(PYTHON\))"
_PARSING = {
    name: getattr(argparse.ArgumentParser, name)
    for name in ("parse_args", "parse_known_args", "parse_intermixed_args")
}

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
scripts = pytest.mark.parametrize("page", SCRIPTS, ids=lambda page: page.name)


def test_the_readme_is_short() -> None:
    assert len(PAGES[0].read_text().splitlines()) <= MAX_README_LINES


def test_the_readme_links_every_page() -> None:
    linked = {(ROOT / target).resolve() for target, _ in links(PAGES[0])}
    assert set(PAGES[1:]) <= linked


@pages
def test_links_and_anchors_lead_somewhere(page: Path) -> None:
    broken = []
    for target, anchor in links(page):
        file = (page.parent / target).resolve() if target else page
        if not file.is_file() or (anchor and anchor not in anchors(file)):
            broken.append(f"{target}#{anchor}")
    assert not broken


@pages
def test_paths_in_code_exist(page: Path) -> None:
    folders = "|".join([*PACKAGES, "requirements", "tools", "docs"])
    named = re.findall(rf"`((?:{folders})/[\w./-]*)`", page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


@pages
def test_commands_exist_and_know_their_options(page: Path) -> None:
    wrong = [f"{found.text}: {reason}" for found in commands(page) if (reason := fault(found))]
    assert not wrong


@scripts
def test_commands_in_scripts_and_comments_exist(page: Path) -> None:
    found = list(commands(page))
    assert found
    assert not [f"{one.text}: {reason}" for one in found if (reason := fault(one))]


@pages
def test_options_that_are_named_by_themselves_exist(
    page: Path, known_options: dict[str, set[str]]
) -> None:
    """Those of a subcommand, such as `verify --level`, are that one's; others are of any."""
    unknown = []
    for mention, _ in code_of(page.read_text()):
        first, *_ = mention.split() or [""]
        is_known = first in known_options or first.startswith("--")
        for option in re.findall(r"(?<!\S)--[a-z][a-z-]*", mention) if is_known else []:
            if option not in known_options.get(first, known_options[""]):
                unknown.append(mention)
    assert not unknown


@pages
def test_targets_of_make_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))
    variables = {*re.findall(r"\$\((?:if \$\()?([A-Z]+)\)", makefile)}
    for line, _ in code_of(page.read_text()):
        if line.startswith("make "):
            words = line.partition("#")[0].split()[1:]
            named = {word.partition("=")[0] for word in words if "=" in word}
            assert named <= variables, line
            assert {word for word in words if word.isalpha()} <= targets, line


@pytest.fixture(scope="module")
def known_options() -> dict[str, set[str]]:
    """Subcommand to its options; under "" those of all commands."""
    found: dict[str, set[str]] = {"": set()}
    for command in test_help.commands():
        with pytest.MonkeyPatch.context() as patched:
            parser = test_help.parser_of(command, patched)
        for one in test_help.with_subcommands(parser):
            options = {name for action in one._actions for name in action.option_strings}
            found[""] |= options
            if one is not parser:
                found.setdefault(one.prog.split()[-1], set()).update(options)
    return found


@pages
def test_overrides_of_commands_are_config_keys(page: Path) -> None:
    written: set[str] = set()  # folders of configs that a command before writes
    for found in commands(page):
        options = found.parsed() if found.whole else None
        if getattr(options, "command", None) == "init":
            written.add(options.output)
        config = getattr(options, "config_file", None)
        if config and str(Path(config).parent) not in written:
            load_config(str(ROOT / config), options.opts)


@pages
def test_config_keys_of_code_exist(page: Path) -> None:
    known = default_config()
    named = re.findall(r"`([A-Z][A-Z0-9_]+(?:\.[A-Z0-9_]+)+)(?=[ `=])", page.read_text())
    assert named == [key for key in named if has_key(known, key)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("`python -m storage verify CACHE --levle full`", "--levle"),
        ("`python -m storage verfy CACHE`", "verfy"),
        ("`python -m storages verify`", "storages"),
        ("`python -m benchmarks.caches`", "benchmarks.caches"),
        ("    torchrun -m detectors train --config-file $C \\\n        --no", "--no"),
        ("    python -m stage1_dump status  # CACHE is missing", "cache"),
        ("```sh\npython -m stage1_dump status\n```", "cache"),
        ("    python tools/carry.py pck wheels", "pck"),
    ],
)  # fmt: skip
def test_a_wrong_command_is_found(tmp_path: Path, text: str, expected: str) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"# Title\n\n{text}\n")
    (found,) = commands(page)
    assert expected in fault(found)


@dataclass(frozen=True, kw_only=True)
class Command:
    """A `python -m`, `torchrun -m` or `python tools/...` command of a page.

    Attributes:
        module: after -m, or the script's.
        arguments: after the module, variables of the page put in.
        whole: of a block, to be typed as it is; else a mention in a sentence, which may leave
            arguments out.
    """

    module: str
    arguments: tuple[str, ...]
    whole: bool

    @property
    def text(self) -> str:
        return shlex.join(["python", "-m", self.module, *self.arguments])

    @property
    def subcommand(self) -> list[str]:
        """The first argument, unless it is an option or a placeholder: at most one."""
        first = self.arguments[:1]
        return [one for one in first if re.fullmatch(r"[a-z][a-z-]+", one)]

    def parsed(self) -> argparse.Namespace:
        """Parse without running; wrong use ends in SystemExit."""
        # Whichever way a command parses: what is not stopped here would run.
        stopping = {name: self._stopping(parse) for name, parse in _PARSING.items()}
        with patch.multiple(argparse.ArgumentParser, **stopping):
            try:
                entry_point(self.module).main(list(self.arguments))
            except _Parsed as parsed:
                return parsed.options
        raise AssertionError(f"{self.module} parses no command line")

    @staticmethod
    def _stopping(parse: Callable[..., Any]) -> Callable[..., Any]:
        """A method of ArgumentParser that ends the command once it has parsed."""

        def stop(parser: argparse.ArgumentParser, *args: Any, **keywords: Any) -> None:
            with patch.multiple(argparse.ArgumentParser, **_PARSING):  # it calls the others itself
                found = parse(parser, *args, **keywords)
            raise _Parsed(found[0] if isinstance(found, tuple) else found)

        return stop


class _Parsed(BaseException):  # past every handler of the command
    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self.options = options


def fault(command: Command) -> str:
    """What is wrong with a command; empty if nothing is."""
    if command.module.startswith("examples."):  # they have no options, and tests of their own
        return "" if (ROOT / f"{command.module.replace('.', '/')}.py").exists() else "no example"
    try:
        text = help_of(command.module, *command.subcommand)
    except ImportError as error:
        return str(error)
    except _WrongUseError as error:
        return str(error)
    for option in command.arguments:
        if option.startswith("--") and not re.search(rf"(?<![\w-]){option}(?![\w-])", text):
            return f"{option} is no option of it"
    if not command.whole:
        return ""
    with redirect_stderr(io.StringIO()) as errors:
        try:
            command.parsed()
        except SystemExit:
            return errors.getvalue()
    return ""


class _WrongUseError(Exception):
    pass


@cache
def help_of(module: str, *subcommand: str) -> str:
    """What `--help` prints; ImportError, or _WrongUseError with the parser's own words."""
    with redirect_stdout(io.StringIO()) as output, redirect_stderr(io.StringIO()) as errors:
        try:
            entry_point(module).main([*subcommand, "--help"])
        except SystemExit as end:
            if end.code:
                raise _WrongUseError(errors.getvalue()) from None
    return output.getvalue()


def entry_point(module: str) -> ModuleType:
    if module in PACKAGES:
        return importlib.import_module(f"{module}.__main__")
    return importlib.import_module(module)


def commands(page: Path) -> Iterator[Command]:
    """The commands of a page that are ours, in its order."""
    variables: dict[str, str] = {}
    lines = code_of if page.suffix == ".md" else lines_of
    for line, whole in lines(page.read_text()):
        for name, value in variables.items():
            line = re.sub(rf"\${name}\b", value, line)
        if assigned := re.fullmatch(r"([A-Z]+)=(\S+)", line):
            variables[assigned[1]] = assigned[2]
        found = re.search(rf"{_RUN} (?:-m ([\w.]+)|(tools/\w+)\.py) ?(.*)", line)
        if found and found[1] not in OTHERS:
            arguments = tuple(shlex.split(found[3], comments=True))
            module = found[1] or found[2].replace("/", ".")
            yield Command(module=module, arguments=arguments, whole=whole)


def has_key(node: object, key: str) -> bool:
    """Whether a config has a key such as SOLVER.BASE_LR."""
    for name in key.split("."):
        if not isinstance(node, dict) or name not in node:
            return False
        node = node[name]
    return True


def code_of(text: str) -> Iterator[tuple[str, bool]]:
    """Lines of code, stripped, and whether they stand in a block of commands.

    Such a block is indented, or fenced with a language. A fence without one holds a picture.
    """
    text = text.replace("\\\n", " ")
    prose, *fences = re.split(r"^```(?=\w|$)", text, flags=re.MULTILINE)
    for inside, after in zip(fences[::2], fences[1::2], strict=True):
        language, *lines = inside.splitlines()
        yield from ((line.strip(), bool(language)) for line in lines)
        prose += after
    indented = r"^    .*$"
    yield from ((line.strip(), True) for line in re.findall(indented, prose, flags=re.MULTILINE))
    for mention in re.findall(r"`([^`]+)`", re.sub(indented, "", prose, flags=re.MULTILINE)):
        yield " ".join(mention.split()), False


def lines_of(text: str) -> Iterator[tuple[str, bool]]:
    """Lines of a script or a config, comments too: mentions, since variables stand in them."""
    for line in text.replace("\\\n", " ").splitlines():
        yield line.strip(" \t#"), False


def links(page: Path) -> list[tuple[str, str]]:
    """File (may be empty) and anchor (may be empty) of every link that stays in the project."""
    found = re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", page.read_text())
    return [(file, anchor) for file, anchor in found if "://" not in file]


@cache
def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    prose = "".join(re.split(r"^```.*$", page.read_text(), flags=re.MULTILINE)[::2])
    headings = re.findall(r"^#+ (.+)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
