"""The config of an exported detector as detectron2 alone reads it, without our nodes."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

from configs.backbones import BACKBONES
from configs.fcos_node import FCOS_DEFAULTS
from configs.nodes import users_nodes
from configs.stock_limits import leaves, value_of

from . import backbones, fcos_model  # noqa: F401 (registers them)

_OURS = f"{__package__}."


def add_config(cfg: CfgNode) -> None:
    """Add to detectron2's own config what our backbones and our FCOS read, as it is by default.

    Importing this module registers them.

    Args:
        cfg: of `detectron2.config.get_cfg`; changed in place.
    """
    for name, keys in {**BACKBONES, "FCOS": FCOS_DEFAULTS}.items():
        cfg.MODEL[name] = CfgNode(deepcopy(keys))


def plain_config(cfg: CfgNode, weights: Path) -> str:
    """YAML for `merge_from_file`, and a comment that says what it needs beside detectron2.

    OUTPUT_DIR is left out: what detectron2 writes there must not replace what a training wrote.

    Args:
        cfg: of `configs.loader`.
        weights: what MODEL.WEIGHTS shall be.
    """
    plain, steps = get_cfg(), []
    steps += [f"import {module}" for module in cfg.IMPORTS]
    steps += ["cfg = get_cfg()"]
    if _needs_ours(cfg):
        add_config(plain)
        steps.insert(0, f"from {__name__} import add_config")
        steps.append("add_config(cfg)")
    for name, node in users_nodes(cfg).items():
        plain[name] = node.clone()
        steps.append(f"cfg.{name} = CfgNode(new_allowed=True)")
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
    parts = (
        META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE),
        BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME),
    )
    return any(part.__module__.startswith(_OURS) for part in parts)


def _set(cfg: CfgNode, key: str, value: Any) -> None:
    *parents, name = key.split(".")
    node = value_of(cfg, ".".join(parents)) if parents else cfg
    node[name] = value
