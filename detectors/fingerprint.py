"""Proof that a cache belongs to its teacher: a digest of the weights, and the config beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import Tensor, nn

from configs.nodes import NODES, users_nodes

from .families import family_of
from .weights_file import read_weights_file

_ANCHORS = "anchor_generator.cell_anchors"


def teacher_fingerprint(model: nn.Module, cfg: CfgNode) -> dict[str, Any]:
    """Describe a teacher by everything that changes its outputs.

    Returns:
        `{"tensors": sha256, "config": {...}}`, fit for JSON; the config is kept readable so that
        a mismatch can name its field and both values.
    """
    return {"tensors": tensors_sha256(model.state_dict()), "config": config_fingerprint(cfg)}


def config_fingerprint(cfg: CfgNode) -> dict[str, Any]:
    """The part of the config that changes a model's outputs, as plain JSON values.

    It names the family where that is not the model's own name. Of the user's own nodes it holds
    what differs from the defaults, so that a cache is the same with and without a module that its
    teacher has no use for.
    """
    family = family_of(cfg)
    config = dict(family.identity(cfg))
    if family.name != cfg.MODEL.META_ARCHITECTURE:
        config["FAMILY"] = family.name
    for name, node in users_nodes(cfg).items():
        defaults = {item.name.upper(): item.default for item in fields(NODES[name])}
        changed = {key: value for key, value in node.items() if value != defaults[key]}
        config |= {name: changed} if changed else {}
    return json.loads(json.dumps(config))


def tensors_sha256(state: Mapping[str, Tensor]) -> str:
    """SHA-256 over the sorted (name, dtype, shape, bytes) of parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def file_sha256(path: str) -> str:
    """The digest of the weights in a file: `tensors_sha256` of a model that takes them as they are.

    Weights that detectron2 converts while loading, names of Caffe2 or half precision, have another
    one than the model that they end up in.

    Raises:
        OSError, WeightsFileError: as `read_weights_file`.
    """
    weights = read_weights_file(path)["model"]
    # Older files hold anchors too, which detectron2 computes anew.
    return tensors_sha256(
        {name: torch.as_tensor(w) for name, w in weights.items() if _ANCHORS not in name}
    )
