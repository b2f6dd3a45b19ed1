"""Distillation methods: the registry, open to modules of the user's, and what a config names of it.

A method is one file here and its node in `configs/nodes/`: plain functions on tensors, which may be
called without a config, and a `Method` that brings them into a training step.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from inspect import getattr_static, signature
from typing import Any, TypeVar

from torch import nn

from configs.imports import OF_YOURS
from configs.nodes import NODES
from configs.origins import place_of
from configs.wording import full_name
from detectors import Setup

from .base import DETECTIONS, DrawnBoxes, Method, Pair, Step
from .boxes import BoxOverlap
from .cwd import Cwd
from .features import AdaptedMethod, FeatureMethod
from .fgd import Fgd
from .frs import Frs
from .gid import Gid
from .mgd import Mgd
from .mimic import Mimic
from .pkd import Pkd
from .pseudo import Pseudo

__all__ = [
    "DETECTIONS",
    "AdaptedMethod",
    "DrawnBoxes",
    "FeatureMethod",
    "Method",
    "Pair",
    "Step",
    "TrainedLayers",
    "build_methods",
    "check_methods",
    "chosen_methods",
    "get_method",
    "needs_of",
    "nodes_of_methods",
    "register_method",
]

MethodClass = TypeVar("MethodClass", bound=type[Method])

_SHIPPED: tuple[type[Method], ...] = (Gid, Pkd, Frs, Cwd, Mgd, Fgd, Mimic, BoxOverlap, Pseudo)
_METHODS: dict[str, type[Method]] = {one.name: one for one in _SHIPPED}
# What is asked before there is an object, and of what.
_ASKED_OF_THE_CLASS = {
    "needs": ("config",),
    "check": ("config", "setup"),
    "without": ("lacking",),
    "full_weight_at": ("config",),
}


def register_method(method: MethodClass) -> MethodClass:
    """Make a method known; a class decorator, for a module that `IMPORTS` names.

    Raises:
        ValueError: it is no whole `Method`, its name is taken or no name, its node is not
            registered, a weight is no field of it, or the class cannot be asked what it needs.
    """
    _require_whole(method)
    title = full_name(method)
    name, config = method.name, method.Config
    if not isinstance(name, str) or not re.fullmatch("[a-z][a-z0-9]*", name):
        # Without an underscore, no two methods can give a term of the loss the same name.
        raise ValueError(f"{title}.name: expected lower-case letters and digits, got {name!r}")
    if name in _METHODS:
        both = f"{full_name(_METHODS[name])} and {title}"
        raise ValueError(f"both {both} are the method {name!r}; rename one")
    if NODES.get(getattr(config, "node", "")) is not config:
        raise ValueError(f"{title}.Config: expected a node that register_node made known")
    for part, arguments in _ASKED_OF_THE_CLASS.items():
        is_of_class = isinstance(getattr_static(method, part), classmethod | staticmethod)
        if not is_of_class or not _takes(getattr(method, part), arguments):
            taken = "(cls, " + ", ".join(arguments) + ")"
            raise ValueError(f"{title}.{part}: expected a @classmethod that takes {taken}")
    # Kept: what gives names once has none the next time.
    method.needs_unlabelled = _names(f"{title}.needs_unlabelled", method.needs_unlabelled)
    fields = list(method.weights.values()) if isinstance(method.weights, Mapping) else [None]
    if not all(isinstance(field, str) for field in fields):
        raise ValueError(
            f"{title}.weights: expected names of terms to fields of {config.node}, "
            f"got {method.weights!r}"
        )
    for field in fields:
        if not hasattr(config, field):
            raise ValueError(f"{title}.weights: {config.node} has no key {field.upper()}")
    _METHODS[name] = method
    return method


def _require_whole(method: Any) -> None:
    """Refuse what is no `Method`, or lacks a part that each has to have."""
    if not isinstance(method, type) or not issubclass(method, Method):
        raise ValueError(f"{full_name(method)}: expected a class that derives from Method")
    lacking = [
        part
        for part in ("name", "Config", "weights", "needs", "forward")
        if getattr_static(method, part, None) is getattr_static(Method, part, None)
    ]
    if lacking:
        raise ValueError(f"{full_name(method)} lacks {', '.join(lacking)}, which each method has")


def _takes(function: Any, arguments: Sequence[str]) -> bool:
    """Whether something can be called with as many arguments."""
    try:
        signature(function).bind(*arguments)
    except (TypeError, ValueError):
        return False
    return True


def _names(stated: str, given: Any) -> tuple[str, ...]:
    """Names in anything that can be iterated; in a lone string they would be its letters.

    Raises:
        ValueError: it is something else; begins with `stated`.
    """
    if isinstance(given, Iterable) and not isinstance(given, str):
        names = tuple(given)
        if all(isinstance(one, str) for one in names):
            return names
    raise ValueError(f"{stated}: expected names in a tuple, such as ('features',), got {given!r}")


def _needs(method: type[Method], config: Any) -> tuple[str, ...]:
    return _names(f"{full_name(method)}.needs", method.needs(config))


def get_method(name: str) -> type[Method]:
    """The method of a name; KeyError if there is none."""
    return _METHODS[name]


def nodes_of_methods() -> set[str]:
    """Names of the config nodes that methods alone read."""
    return {one.Config.node for one in _METHODS.values()}


def chosen_methods(setup: Setup) -> list[tuple[type[Method], Any]]:
    """The methods that DISTILL.METHODS names, each with its node.

    Raises:
        ValueError: there is none of a name, or its module was imported after the config was read.
    """
    found = []
    stated = f"{place_of(setup.cfg, 'DISTILL.METHODS')}DISTILL.METHODS"
    for name in setup.settings.distill.methods:
        if name not in _METHODS:
            near = difflib.get_close_matches(name, _METHODS, n=1, cutoff=0.5)
            hint = f", did you mean {near[0]}?" if near else "."
            raise ValueError(
                f"{stated}: there is no method {name!r}{hint} Expected some of: "
                f"{', '.join(_METHODS)} {OF_YOURS}"
            )
        method = _METHODS[name]
        if method.Config.node not in setup.settings.others:
            raise ValueError(
                f"{stated}: the module {method.__module__}, which registers the method {name!r}, "
                "was imported after this config was read, as what TEACHER.CONFIG alone names is: "
                "name it by IMPORTS of this config too"
            )
        found.append((method, setup.settings[method.Config.node]))
    return found


def build_methods(pair: Pair) -> list[Method]:
    """Those that the student's config names, for this teacher and student.

    Raises:
        ValueError: one cannot distil this pair.
    """
    return [method(config, pair) for method, config in chosen_methods(pair.setup)]


def needs_of(setup: Setup) -> dict[str, list[str]]:
    """What a training reads of the teacher: signal, or `DETECTIONS`, to the methods that do."""
    found: dict[str, list[str]] = {}
    for method, config in chosen_methods(setup):
        further = method.needs_unlabelled if setup.cfg.DATASETS.UNLABELED else ()
        for need in dict.fromkeys((*_needs(method, config), *further)):
            found.setdefault(need, []).append(method.name)
    return found


def check_methods(setup: Setup) -> None:
    """Refuse what the methods cannot do with the detectors of a config.

    Raises:
        ValueError: names the key, or what teacher and student do not share.
    """
    for method, config in chosen_methods(setup):
        method.check(config, setup)
        _check_pairing(setup, method, config)
    if any(need != DETECTIONS for need in needs_of(setup)):
        _check_padding(setup)


def _check_padding(setup: Setup) -> None:
    """Refuse a student whose batches could be smaller than the teacher's maps of their views."""
    ours = setup.family.size_divisibility(setup.cfg)
    theirs = setup.teacher_family.size_divisibility(setup.teacher_cfg)
    if ours % theirs:
        raise ValueError(
            f"the student pads images to multiples of {ours} px, the teacher to multiples of "
            f"{theirs} px, so that its maps do not fit into every batch; let the student's pyramid "
            f"have a map of stride {theirs} of its backbone too (OUT_FEATURES, "
            "MODEL.FPN.IN_FEATURES)"
        )


def _check_pairing(setup: Setup, method: type[Method], config: Any) -> None:
    """Refuse a teacher and a student that differ in what this method needs them to share."""
    ours = setup.family.pairing(setup.cfg)
    theirs = setup.teacher_family.pairing(setup.matched_teacher_cfg)
    for need in _needs(method, config):
        for side, facts, cfg in (
            ("student", ours, setup.cfg),
            ("teacher", theirs, setup.teacher_cfg),
        ):
            if need not in facts:
                raise ValueError(
                    f"the method {method.name} needs the {need} of teacher and student, but the "
                    f"{side}, a {cfg.MODEL.META_ARCHITECTURE}, has {', '.join(facts)}"
                )
        mine, other = ours[need], theirs[need]
        different = [
            f"{fact}: student {mine.get(fact)}, teacher {other.get(fact)}"
            for fact in mine | other
            if mine.get(fact) != other.get(fact)
        ]
        if different:
            raise ValueError(
                f"teacher and student do not match: {'; '.join(different)}; the method "
                f"{method.name} needs the {need} of both{_hint(setup, different)}"
            )


def _hint(setup: Setup, different: Sequence[str]) -> str:
    """What to do where nothing but the number of classes differs."""
    if len(different) > 1 or "number of classes" not in different[0] or setup.class_map:
        return ""
    return "; if the student's classes are some of the teacher's, set TEACHER.CLASSES"


class TrainedLayers:
    """The layers of several methods as one part of a checkpoint, told apart by their names."""

    def __init__(self, methods: Mapping[str, nn.Module]) -> None:
        """Args: name to method."""
        self._methods = methods

    def state_dict(self) -> dict[str, Any]:
        """Name of each method to the state of its layers."""
        return {name: method.state_dict() for name, method in self._methods.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` gave.

        Raises:
            ValueError: it is of other methods, or of layers of other shapes.
        """
        if list(state) != list(self._methods):
            raise ValueError(
                f"the run was begun with DISTILL.METHODS {tuple(state)}, not "
                f"{tuple(self._methods)}: resume it with those, or start anew in another OUTPUT_DIR"
            )
        for name, method in self._methods.items():
            try:
                method.load_state_dict(state[name])
            except RuntimeError as error:
                reason = " ".join(str(error).partition(":")[2].split())
                raise ValueError(
                    f"the method {name} has other layers or buffers than those loaded: {reason} "
                    "Go on with the method and its node as they were, or start anew in another "
                    "OUTPUT_DIR"
                ) from error
