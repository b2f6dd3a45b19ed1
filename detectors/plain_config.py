"""The config of an exported detector as detectron2 alone reads it, without our nodes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import BACKBONE_REGISTRY, META_ARCH_REGISTRY

from configs.backbones import BACKBONES
from configs.loader import default_config
from configs.nodes import NODES, users_nodes
from configs.stock_limits import leaves, value_of

from . import backbones, fcos_model  # noqa: F401 (registers them)

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


def plain_config(cfg: CfgNode, weights: Path) -> str:
    """YAML for `merge_from_file`, and a comment that says what it needs beside detectron2.

    OUTPUT_DIR is left out: what detectron2 writes there must not replace what a training wrote.

    Args:
        cfg: of `configs.loader`.
        weights: what MODEL.WEIGHTS shall be.
    """
    plain, steps = get_cfg(), [f"import {module}" for module in cfg.IMPORTS]
    users, is_stock = users_nodes(cfg), _is_stock(cfg)
    plain.update({name: node.clone() for name, node in users.items()})
    if not is_stock:
        plain.MODEL.update({name: cfg.MODEL[name].clone() for name in _PARTS})
    if users or not is_stock:
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


def _is_stock(cfg: CfgNode) -> bool:
    """Whether detector and backbone are detectron2's; of the user's may read what ours do."""
    parts = (
        META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE),
        BACKBONE_REGISTRY.get(cfg.MODEL.BACKBONE.NAME),
    )
    return all(part.__module__.startswith("detectron2.") for part in parts)


def _set(cfg: CfgNode, key: str, value: Any) -> None:
    *parents, name = key.split(".")
    node = value_of(cfg, ".".join(parents)) if parents else cfg
    node[name] = value
