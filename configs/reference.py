"""Tables of every config key: its default, what it may be, what it is and where it is refused.

Nothing is said twice: meanings are the comments above the keys where their defaults are, limits
are what the errors say, refusals are those of `configs.stock_keys`. The command
`python -m benchmarks.tables` writes them into docs/CONFIG.md.
"""

from __future__ import annotations

import ast
import inspect
import io
import re
import tokenize
from collections.abc import Callable, Iterator
from dataclasses import fields
from types import ModuleType
from typing import Any

from configs import backbones, fcos_node, loader
from configs.markdown import markdown_table
from configs.nodes import NODES, OWN_NODES
from configs.rules import MAX_WHOLE
from configs.stock_keys import COMMANDS, OF_HEADS, OF_NODES, REFUSALS, STAGES, STUDENTS
from configs.stock_limits import LIMITS, TOGETHER, value_of

_GROUPS = {COMMANDS: "every command", STAGES: "the stages", STUDENTS: "the stages but for dumps"}
# No field takes it; only text does, or the path of a file.
_WRONG = (object(), "none://")


def node_tables() -> Iterator[str]:
    """A heading, a sentence and a table for each of our nodes."""
    for name in OWN_NODES:
        node = NODES[name]
        about, _, _ = (inspect.getdoc(node) or "").partition("\n\nRaises:")
        about = about.removeprefix(f"Node {name}: ")
        meanings = _meanings(node)
        yield from ("", f"### Node {name}", "", about[0].upper() + about[1:], "")
        yield from markdown_table(
            ["key", "default", "may be", "is"],
            (
                [f"`{key}`", _code(one.default), _allowed(node, one.name), meanings[one.name]]
                for one in fields(node)
                for key in [one.name.upper()]
            ),
        )


def added_keys() -> Iterator[str]:
    """The keys that we add to detectron2's nodes, and the nodes that we add to MODEL."""
    defaults = loader.default_config()
    yield from markdown_table(
        ["key", "default", "may be", "is"],
        (
            [f"`{key}`", _code(value_of(defaults, key)), _short(LIMITS[key].expected), meaning]
            for key, meaning in _added().items()
        ),
    )


def refused_keys() -> Iterator[str]:
    """Where a key would be accepted and ignored, and is refused; but for other heads' and ours."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for one in REFUSALS:
        if one not in (*OF_HEADS, *OF_NODES):
            where = _GROUPS.get(one.readers) or ", ".join(f"`{name}`" for name in one.readers)
            reasons.setdefault((where, _without_values(one.reason)), []).append(f"`{one.key}`")
    yield from markdown_table(
        ["key", "refused by", "why, and what to do"],
        (["<br>".join(keys), where, why] for (where, why), keys in reasons.items()),
    )


def limited_keys() -> Iterator[str]:
    """Limits of detectron2's own keys, and what is right only together with another key."""
    added = _added()
    keys: dict[str, list[str]] = {}
    for key, rule in LIMITS.items():
        if key not in added:
            keys.setdefault(_short(rule.expected), []).append(f"`{key}`")
    rows = [[", ".join(names), expected] for expected, names in keys.items()]
    rows += [[f"`{key}`", expected] for key, expected, _ in TOGETHER]
    yield from markdown_table(["keys", "may be"], rows)


def _added() -> dict[str, str]:
    """The keys that detectron2 lacks, with their meanings."""
    in_code = _meanings(loader.default_config)
    found = {name.removeprefix("cfg."): meaning for name, meaning in in_code.items()}
    found |= {f"MODEL.FCOS.{name}": meaning for name, meaning in _meanings(fcos_node).items()}
    return found | {f"MODEL.{name}": meaning for name, meaning in _meanings(backbones).items()}


def _meanings(source: ModuleType | type[Any] | Callable[..., Any]) -> dict[str, str]:
    """The comment above each field, assignment or key of a dict, by its name.

    Raises:
        ValueError: one has none.
    """
    text = inspect.getsource(source)
    tree = ast.parse(text)
    comments = _comments(text)
    lines = dict(_lines(tree if isinstance(source, ModuleType) else tree.body[0]))
    for name, line in lines.items():
        if line - 1 not in comments:
            raise ValueError(
                f"{source.__name__}: {name}: expected a comment above it that says what it is"
            )
    return {name: comments[line - 1] for name, line in lines.items()}


def _lines(tree: ast.AST, prefix: str = "") -> Iterator[tuple[str, int]]:
    """Names with the lines that they stand in; keys of a dict in a dict with a dot."""
    for child in ast.iter_child_nodes(tree):
        match child:
            case (
                ast.FunctionDef()
                | ast.AnnAssign(annotation=ast.Subscript(value=ast.Name(id="ClassVar")))
            ):
                pass
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.Dict()):
                yield from _lines(child, prefix)
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name, child.lineno
            case ast.Assign(targets=[ast.Attribute() as target]):
                yield ast.unparse(target), child.lineno
            case ast.Dict():
                for key, value in zip(child.keys, child.values, strict=True):
                    name = f"{prefix}{ast.literal_eval(key)}" if key else prefix
                    if isinstance(value, ast.Dict):
                        yield from _lines(ast.Expression(value), f"{name}.")
                    else:
                        yield name, child.lineno if key is None else key.lineno
            case _:
                yield from _lines(child, prefix)


def _comments(text: str) -> dict[int, str]:
    """Comments that have lines of their own, joined, by the last of these lines."""
    found: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        row, _ = token.start
        if token.type == tokenize.COMMENT and token.line.lstrip().startswith("#"):
            before = found.pop(row - 1, "")
            found[row] = f"{before} {token.string.lstrip('# ')}".lstrip()
    return found


def _allowed(node: type[Any], name: str) -> str:
    """What a field may be, as the node says when it refuses a value."""
    expected = ""
    for wrong in _WRONG:
        try:
            node(**{name: wrong})
        except ValueError as error:
            _, _, told = str(error).partition(": expected ")
            expected, _, _ = told.rpartition(", got ")
    return _short(expected)


def _short(expected: str) -> str:
    return expected.replace(f" and at most {MAX_WHOLE}", "")


def _without_values(reason: str) -> str:
    """A reason that names keys in place of the values that they have in a config."""
    reason = re.sub(r"([A-Z_.]+)(?:, which is|,)? \{cfg\.\1(?:!r)?\}", r"\1", reason)
    return re.sub(r"\{cfg\.([A-Z_.]+)\}", r"\1", reason)


def _code(value: Any) -> str:
    return f"`{value!r}`"
