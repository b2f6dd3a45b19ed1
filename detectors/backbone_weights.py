"""Weights of a classifier, as torchvision and others publish them, taken for a backbone."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

from configs.wording import listed

logger = logging.getLogger(__name__)

# Where a model keeps its network: under an FPN, under SimpleFeaturePyramid, or as it is.
_PREFIXES = ("backbone.bottom_up.", "backbone.net.", "backbone.")
# torchvision's names of ResNet and detectron2's, in the order in which they are replaced.
_RESNET = "layer1.0.conv1.weight"
_RESNET_NAMES = (
    (r"^conv1\.", "stem.conv1."),
    (r"^bn1\.", "stem.conv1.norm."),
    (r"^layer(\d)\.", lambda found: f"res{int(found[1]) + 1}."),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)
_SHOWN = 4


def as_backbone(weights: Mapping[str, Any], wanted: Mapping[str, Any]) -> Mapping[str, Any]:
    """Name the weights of a network alone as a detector names them; says what was left out.

    Args:
        weights: of a file, by name.
        wanted: the detector's tensors, by name.

    Returns:
        Those that the detector has, by its own names; all as they are, if it has some of these
        names already, or has none of them in its backbone either.

    Raises:
        ValueError: the network of the file has another size.
    """
    if any(name in wanted for name in weights):
        return weights
    names = {name: _of_detectron2(name) if _RESNET in weights else name for name in weights}
    for prefix in _PREFIXES:
        taken = {old: prefix + new for old, new in names.items() if prefix + new in wanted}
        if taken:
            _refuse_another_size({new: weights[old] for old, new in taken.items()}, wanted)
            _say(prefix, taken, weights)
            return {new: weights[old] for old, new in taken.items()}
    return weights


def _of_detectron2(name: str) -> str:
    for pattern, replacement in _RESNET_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _refuse_another_size(weights: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Part of a network, where widths happen to agree, is worth nothing."""
    pairs = ((name, tuple(one.shape), tuple(wanted[name].shape)) for name, one in weights.items())
    unlike = [(name, theirs, ours) for name, theirs, ours in pairs if theirs != ours]
    if unlike:
        name, theirs, ours = unlike[0]
        raise ValueError(
            f"it holds a network of another size, {len(unlike)} of {len(weights)} tensors differ: "
            f"{name} has shape {theirs}, not {ours}; name the weights of the network that "
            "MODEL describes, or change that"
        )


def _say(prefix: str, taken: Mapping[str, str], weights: Mapping[str, Any]) -> None:
    # Counters of batches, which frozen batch norm has none of, are no loss.
    left = [n for n in weights if n not in taken and not n.endswith("num_batches_tracked")]
    parts = Counter(".".join(name.split(".")[:2]) for name in left)
    shown = [f"{part} ({count})" for part, count in parts.most_common()]
    logger.info(
        "took %d of %d tensors for %s (%s, ...), left out: %s",
        *(len(taken), len(taken) + len(left), prefix.rstrip("."), next(iter(taken))),
        listed(shown, shown=_SHOWN) or "none",
    )
