"""Proof that a cache belongs to its teacher: a digest of the weights, and the config beside it."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import torch
from detectron2.config import CfgNode
from torch import nn

from .family import family_of


def teacher_fingerprint(model: nn.Module, cfg: CfgNode) -> dict[str, Any]:
    """Describe a teacher by everything that changes its outputs.

    Returns:
        `{"tensors": sha256, "config": {...}}`, fit for JSON; the config is kept readable so that
        a mismatch can name its field and both values.
    """
    return {"tensors": tensors_sha256(model), "config": config_fingerprint(cfg)}


def config_fingerprint(cfg: CfgNode) -> dict[str, Any]:
    """The part of the config that changes a model's outputs, as plain JSON values."""
    return json.loads(json.dumps(family_of(cfg).output_config(cfg)))


def tensors_sha256(model: nn.Module) -> str:
    """SHA-256 over the sorted (name, dtype, shape, bytes) of parameters and buffers."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
