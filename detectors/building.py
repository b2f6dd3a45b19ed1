"""Building models: what detectron2 raises meanwhile is told as the fault of a config's key.

detectron2 refuses a wrong model with whatever fails first: a KeyError of a registry, an assertion
with or without words, an error of PyTorch's. The key at fault is found, in this order, by its name
in the message, by its value in the message, and by the file of detectron2 that failed.
"""

from __future__ import annotations

import inspect
import re
import reprlib
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from itertools import chain, takewhile
from pathlib import Path
from typing import TypeVar

import detectron2
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import nn

from configs.backbones import BACKBONES
from configs.imports import USER, failure, owner_of, users_place
from configs.nodes import users_nodes
from configs.origins import place_of
from configs.stock_keys import HEADS, head_nodes
from configs.stock_limits import leaves, value_of

from . import backbones, fcos_model  # noqa: F401 (registers them)

T = TypeVar("T")

_RAISED = (
    AssertionError,
    AttributeError,
    LookupError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
    ZeroDivisionError,
)
_DETECTRON2 = Path(detectron2.__file__).resolve().parent
# What of it reads the config; its layers and helpers are given values by whoever calls them.
_NETWORKS = _DETECTRON2 / "modeling"
_KEY = re.compile(r"\b[A-Z][A-Z0-9_]*(?:\.[A-Z0-9_]+)+\b")
# What of a config the files of detectron2 build from, where their message does not say.
_KEYS_OF_FILES = {
    "anchor_generator.py": ("MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.ANCHOR_GENERATOR.ASPECT_RATIOS"),
    "box_head.py": ("MODEL.ROI_BOX_HEAD.NUM_CONV", "MODEL.ROI_BOX_HEAD.NUM_FC"),
    "fcos.py": ("MODEL.FCOS.IN_FEATURES", "MODEL.FCOS.NORM"),
    "fpn.py": ("MODEL.FPN.IN_FEATURES",),
    "matcher.py": ("MODEL.{}.IOU_THRESHOLDS", "MODEL.{}.IOU_LABELS"),
    "poolers.py": ("MODEL.ROI_HEADS.IN_FEATURES",),
    "regnet.py": tuple(f"MODEL.REGNET.{key}" for key in ("DEPTH", "W_A", "W_0", "W_M")),
    "resnet.py": ("MODEL.RESNETS.OUT_FEATURES",),
    "retinanet.py": ("MODEL.RETINANET.IN_FEATURES", "MODEL.ANCHOR_GENERATOR.SIZES"),
    "rpn.py": ("MODEL.RPN.IN_FEATURES", "MODEL.ANCHOR_GENERATOR.SIZES"),
}
# The node of {}: that of the part which is built.
_NODES_OF_FILES = {"retinanet.py": "RETINANET", "roi_heads.py": "ROI_HEADS", "rpn.py": "RPN"}
_KEYS_AT_ALL = ("MODEL.META_ARCHITECTURE", "MODEL.BACKBONE.NAME")
# Where a value in a message may come from.
_NODES = [
    ["MODEL", name]
    for name in (
        *("ANCHOR_GENERATOR", "BACKBONE", "FCOS", "FPN", "META_ARCHITECTURE", "PROPOSAL_GENERATOR"),
        *("RESNETS", "RETINANET", "ROI_BOX_HEAD", "ROI_HEADS", "RPN"),
        *BACKBONES,
    )
]
# Neither changes the form of a model, and commands set both.
_NOT_OF_THE_FORM = ("DEVICE", "WEIGHTS")


def build_detector(cfg: CfgNode) -> nn.Module:
    """Build the model of a config, on its device, with fresh weights.

    Raises:
        ValueError: detectron2 cannot build it; names file, key and value.
    """
    with naming_the_config(cfg):
        model: nn.Module = build_model(cfg)
        return model


@contextmanager
def naming_the_config(cfg: CfgNode) -> Iterator[None]:
    """Turn what is raised while a model is built into an error that names the key at fault.

    Raises:
        ValueError: in place of what detectron2 raised, which is its cause.
    """
    try:
        yield
    except _RAISED as error:
        # The device's fault, not the config's.
        if isinstance(error, torch.OutOfMemoryError) or "CUDA" in str(error):
            raise
        raise ValueError(_explained(cfg, error)) from error


def of_the_model(ask: Callable[[CfgNode], T]) -> Callable[[CfgNode], T]:
    """Ask something of a config's model that needs parts of it built: once a config, on the CPU.

    Nothing random is drawn from the caller's generator. ResNet-101 with FPN takes a third of a
    second.
    """
    known: dict[str, T] = {}

    @wraps(ask)
    def asked(cfg: CfgNode) -> T:
        model = {k: v for k, v in cfg.MODEL.items() if k not in _NOT_OF_THE_FORM}
        form = repr((model, users_nodes(cfg)))
        if form not in known:
            with naming_the_config(cfg), torch.random.fork_rng(devices=[]):
                known[form] = ask(cfg)
        return known[form]

    return asked


def _explained(cfg: CfgNode, error: Exception) -> str:
    message = _message(error)
    of_users = "" if _KEY.search(message) else _failure_of_users(error)
    if of_users:
        keys = list(_KEYS_AT_ALL)
        reason = f"code of yours fails while the model is built: {of_users}"
    else:
        keys = _keys_at_fault(cfg, error, message)
        place = users_place(error)
        called = f"; called in {place}" if place else ""
        reason = f"detectron2 cannot build a model of it ({message}{called})"
    stated = "; ".join(
        f"{place_of(cfg, key)}{key} is {reprlib.repr(value_of(cfg, key))}" for key in keys
    )
    return f"{stated}: {reason}"


def _failure_of_users(error: Exception) -> str:
    """What failed in code of the user's, and where; "" where it is detectron2's, for a key."""
    place = users_place(error)
    calls = reversed(_frames(error))
    below = list(takewhile(lambda one: f"{one.filename}:{one.lineno}" != place, calls))
    if place and not any(_lies_in(_NETWORKS, one) for one in below):
        return failure(error)
    # Nothing of the user's runs where detectron2 asks an object of the user's for what it lacks.
    lacks = _users_class(error.obj) if isinstance(error, AttributeError) else ""
    return f"{type(error).__name__}: {_message(error)} ({lacks})" if lacks else ""


def _users_class(of: object) -> str:
    """The `file:line` of an object's class, if it is the user's."""
    try:
        file, line = inspect.getsourcefile(type(of)), inspect.getsourcelines(type(of))[1]
    except (OSError, SyntaxError, TypeError):  # nothing in Python, or its text is another one
        return ""
    return f"{file}:{line}" if file and owner_of(file) == USER else ""


def _message(error: Exception) -> str:
    """What an error says in one line; of one without words, the line that failed."""
    said = error.args[0] if error.args else ""
    text = " ".join(str(said).split())
    if isinstance(error, AssertionError) and not (isinstance(said, str) and " " in text):
        return _frames(error)[-1].line or type(error).__name__
    # A KeyError says nothing but the key.
    return text if " " in text else f"{type(error).__name__}: {text}"


def _frames(error: Exception) -> list[traceback.FrameSummary]:
    return list(traceback.extract_tb(error.__traceback__))


def _lies_in(folder: Path, call: traceback.FrameSummary) -> bool:
    return folder in Path(call.filename).resolve().parents


def _keys_at_fault(cfg: CfgNode, error: Exception, message: str) -> list[str]:
    values = {key: value for key, value in leaves(cfg) if _acts(key, cfg)}
    named = [key for key in _KEY.findall(message) if key in values]
    if named:
        return named[:1]
    # What a KeyError lacks, and what the message has in quotes; as text, so that True is no 1.
    lacking = error.args[:1] if isinstance(error, KeyError) else ()
    said = {*map(repr, (*lacking, *re.findall(r"'([^']+)'", message)))}
    of_value = [
        key
        for key, value in values.items()
        if key.split(".")[:2] in _NODES
        and said.intersection(map(repr, value if isinstance(value, tuple | list) else [value]))
    ]
    if of_value:
        return of_value
    calls = reversed(_frames(error))
    files = [Path(one.filename).name for one in calls if _lies_in(_DETECTRON2, one)]
    node = next((_NODES_OF_FILES[one] for one in files if one in _NODES_OF_FILES), "")
    for file in files:
        keys = [key.format(node) for key in _KEYS_OF_FILES.get(file, ())]
        acting = [key for key in keys if _acts(key, cfg)]
        if acting:
            return acting
    return list(_KEYS_AT_ALL)


def _acts(key: str, cfg: CfgNode) -> bool:
    """Whether a key is not that of another head than the config's."""
    node, own = key.split(".")[:2][-1], head_nodes(cfg)
    return not own or node in own or node not in chain(*HEADS.values())
