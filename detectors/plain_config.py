"""The config of an exported detector as detectron2 alone reads it, without our nodes."""

from __future__ import annotations

import sys
from collections.abc import Collection
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

from configs.backbones import BACKBONES
from configs.loader import default_config
from configs.nodes import NODES, users_nodes
from configs.stock_limits import leaves, value_of

from . import backbones, fcos_model  # noqa: F401 (registers them)

# Those that a part of the user's may import from.
_PACKAGES = ("configs", "dataset", "detectors", "stage1_dump", "stage2_distill", "storage")
# Below MODEL.
_PARTS = (*BACKBONES, "FCOS")


def add_config(cfg: CfgNode) -> None:
    """Add to detectron2's own config what our parts and the user's read, as it is by default.

    These are the nodes of our backbones and our FCOS, which importing this module registers; and
    all nodes of `configs.nodes`, with those that modules of the user's have registered so far.

    Args:
        cfg: of `detectron2.config.get_cfg`; changed in place.
    """
    ours = default_config()
    cfg.MODEL.update({name: ours.MODEL[name] for name in _PARTS})
    cfg.update({name: ours[name] for name in NODES})


def plain_config(cfg: CfgNode, weights: Path, of_methods: Collection[str] = ()) -> str:
    """YAML for `merge_from_file`, and a comment that says what it needs beside detectron2.

    OUTPUT_DIR is left out: what detectron2 writes there must not replace what a training wrote.

    Args:
        cfg: of `configs.loader`.
        weights: what MODEL.WEIGHTS shall be.
        of_methods: nodes that a detector seldom reads: left out where they are as by default, so
            that the file can be read without the modules of the methods.
    """
    plain, steps = get_cfg(), [f"import {module}" for module in cfg.IMPORTS]
    every, defaults = users_nodes(cfg), default_config()
    users = {
        name: node
        for name, node in every.items()
        if name not in of_methods or node != defaults[name]
    }
    needs_ours = _needs_ours(cfg)
    plain.update({name: node.clone() for name, node in users.items()})
    if needs_ours:
        plain.MODEL.update({name: cfg.MODEL[name].clone() for name in _PARTS})
    if every or needs_ours:
        steps += [f"from {__name__} import add_config", "cfg = get_cfg()", "add_config(cfg)"]
    else:
        steps.append("cfg = get_cfg()")
    for key, _ in list(leaves(plain)):
        _set(plain, key, value_of(cfg, key))
    plain.MODEL.WEIGHTS = str(weights)
    del plain["OUTPUT_DIR"]
    name = weights.with_suffix(".yaml").name
    lines = ["For detectron2 alone:", "", *(f"    {step}" for step in steps)]
    lines += [f'    cfg.merge_from_file("{name}")', "", "MODEL.WEIGHTS is relative to the working"]
    lines[-1] += " directory, unless it begins with a slash."
    comment = "".join(f"# {line}".rstrip() + "\n" for line in lines)
    text: str = plain.dump()
    return f"{comment}\n{text}"


def _needs_ours(cfg: CfgNode) -> bool:
    """Whether detector or backbone is ours, or of a module that has taken something from us."""
    parts = (
        META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE),
        BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME),
    )
    # detectron2's own modules hold a loss of ours while something is trained.
    modules = (sys.modules[one.__module__] for one in parts if not _is_detectron2(one))
    held = chain.from_iterable(vars(module).values() for module in modules)
    bases = chain.from_iterable(getattr(one, "__mro__", ()) for one in parts)
    return any(map(_is_ours, (*parts, *bases, *held)))


def _is_detectron2(part: Any) -> bool:
    return str(part.__module__).startswith("detectron2.")


def _is_ours(thing: Any) -> bool:
    """Whether something, or the module that it is, was written here."""
    name = getattr(thing, "__name__" if isinstance(thing, ModuleType) else "__module__", None)
    return isinstance(name, str) and name.partition(".")[0] in _PACKAGES


def _set(cfg: CfgNode, key: str, value: Any) -> None:
    *parents, name = key.split(".")
    node = value_of(cfg, ".".join(parents)) if parents else cfg
    node[name] = value
