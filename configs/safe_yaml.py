"""Reading one YAML file without executing anything in it.

detectron2 falls back to `yaml.unsafe_load`, because its stock RetinaNet configs compute the anchor
sizes with a `!!python/object/apply:eval` tag. Here that one expression is recognised as text and
replaced by its numbers; every other tag outside plain YAML is refused.
"""

import os
import re
from collections.abc import Hashable
from typing import Any

import yaml

EVAL_TAG = "tag:yaml.org,2002:python/object/apply:eval"

# Such a file is Python, or the saved form of it, in which every node names a class to call.
_LAZY_KEY = "_target_"
_LAZY = (
    "this is a detectron2 LazyConfig, which only Python can evaluate; expected a YAML config with "
    "the nodes MODEL, SOLVER, ...: write its settings as one, for instance over `_BASE_: "
    "model_zoo://COCO-Detection/retinanet_R_50_FPN_1x.yaml`"
)

# [[x, x * 2**(1.0/3), x * 2**(2.0/3) ] for x in [32, 64, 128, 256, 512 ]], spacing aside.
_ANCHOR_SIZES = re.compile(
    r"\[\s*\[\s*x\s*,\s*"
    r"x\s*\*\s*2\s*\*\*\s*\(\s*1(?:\.0*)?\s*/\s*3(?:\.0*)?\s*\)\s*,\s*"
    r"x\s*\*\s*2\s*\*\*\s*\(\s*2(?:\.0*)?\s*/\s*3(?:\.0*)?\s*\)\s*,?\s*\]\s*"
    r"for\s+x\s+in\s*\[\s*(?P<bases>\d{1,6}(?:\s*,\s*\d{1,6})*)\s*,?\s*\]\s*\]"
)


class ConfigMapping(dict[str, Any]):
    """A YAML mapping that remembers the line of each of its keys, counted from 1."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: dict[str, int] = {}


class _ConfigLoader(yaml.SafeLoader):
    """SafeLoader with the anchor-size tag, line numbers, and no repeated keys."""


class _Refused(Exception):
    """What is wrong with a node, before the file's name is known."""

    def __init__(self, message: str, node: yaml.Node) -> None:
        super().__init__(message)
        self.line = node.start_mark.line + 1


def expand_anchor_sizes(expression: str) -> list[list[float]] | None:
    """Give the numbers of detectron2's stock anchor-size expression, without evaluating it.

    Args:
        expression: the text inside the tag, any spacing, any list of integers.

    Returns:
        For each base size x: x, x * 2^(1/3), x * 2^(2/3), pixels; bit for bit what `eval` gives.
        None if the text is anything else.
    """
    match = _ANCHOR_SIZES.fullmatch(expression.strip())
    if match is None:
        return None
    bases = [int(text) for text in match["bases"].split(",")]
    return [[x, x * 2 ** (1.0 / 3), x * 2 ** (2.0 / 3)] for x in bases]


def read_yaml(path: str) -> ConfigMapping:
    """Read one config file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not YAML, holds a refused tag or a repeated key, or is not a mapping; the
            message names file and line.
    """
    if not os.path.isfile(path):
        what = "is no regular file; write it to one" if os.path.exists(path) else "does not exist"
        raise FileNotFoundError(f"config file {path} {what}")
    if path.endswith(".py"):
        raise ValueError(f"{path}: {_LAZY}")
    try:
        with open(path, encoding="utf-8") as stream:
            # A SafeLoader subclass: it builds plain values and calls nothing by name.
            content = yaml.load(stream, Loader=_ConfigLoader)
    except _Refused as error:
        raise ValueError(f"{path}:{error.line}: {error}") from None
    except yaml.MarkedYAMLError as error:
        raise ValueError(f"{_place(path, error)}: not valid YAML: {_what(error)}") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        # ValueError: other bytes than UTF-8, a day that no calendar has, thousands of digits.
        text = " ".join(str(error).split())
        raise ValueError(f"{path}: not a YAML text file: {text}") from None
    if not isinstance(content, ConfigMapping):
        kind = "nothing" if content is None else type(content).__name__
        raise ValueError(f"{path}: expected a mapping of config nodes, got {kind}")
    return content


def _place(path: str, error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    return path if mark is None else f"{path}:{mark.line + 1}"


def _what(error: yaml.MarkedYAMLError) -> str:
    return " ".join(part for part in (error.context, error.problem) if part)


def _construct_mapping(loader: _ConfigLoader, node: yaml.MappingNode) -> ConfigMapping:
    _refuse_repeated_keys(node)
    loader.flatten_mapping(node)
    mapping = ConfigMapping()
    for key_node, value_node in node.value:
        key: Hashable = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise _Refused(
                f"expected a config key, got {key!r}; a name that is a number stands in quotes",
                key_node,
            )
        if key == _LAZY_KEY:
            raise _Refused(_LAZY, key_node)
        mapping[key] = loader.construct_object(value_node, deep=True)
        mapping.lines[key] = key_node.start_mark.line + 1
    return mapping


def _refuse_repeated_keys(node: yaml.MappingNode) -> None:
    """YAML readers keep the last of two equal keys in silence: half of a setting would vanish."""
    first_lines: dict[str, int] = {}
    for key_node, _ in node.value:
        key = str(key_node.value)
        if key in first_lines:
            raise _Refused(f"{key} is already set in line {first_lines[key]}", key_node)
        first_lines[key] = key_node.start_mark.line + 1


def _construct_anchor_sizes(loader: _ConfigLoader, node: yaml.Node) -> list[list[float]]:
    sizes = None
    if isinstance(node, yaml.SequenceNode) and len(node.value) == 1:
        argument = node.value[0]
        if isinstance(argument, yaml.ScalarNode):
            sizes = expand_anchor_sizes(argument.value)
    return _refuse_tag(loader, node) if sizes is None else sizes


def _refuse_tag(_loader: _ConfigLoader, node: yaml.Node) -> Any:
    tag = node.tag.replace("tag:yaml.org,2002:", "!!")
    raise _Refused(f"the tag {tag} is refused: config files hold plain YAML, write values", node)


_ConfigLoader.add_constructor("tag:yaml.org,2002:map", _construct_mapping)
_ConfigLoader.add_constructor(EVAL_TAG, _construct_anchor_sizes)
_ConfigLoader.add_constructor(None, _refuse_tag)
