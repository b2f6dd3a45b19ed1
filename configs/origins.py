"""Where a config and its values were stated, for errors that send the user there."""

from __future__ import annotations

from dataclasses import dataclass, field

from detectron2.config import CfgNode

OVERRIDE = "override"
_ATTRIBUTE = "_origins"


@dataclass(frozen=True, kw_only=True)
class Origins:
    """The file of a config, and the places of the values in it.

    Attributes:
        path: the YAML file, as it was named.
        places: key to `file:line`, or `override`; keys at their defaults are not in it.
    """

    path: str
    places: dict[str, str] = field(default_factory=dict)


def remember(cfg: CfgNode, origins: Origins) -> None:
    """Let a config and all its copies know where they come from."""
    # Beside the keys: yacs would take an attribute for one.
    cfg.__dict__[_ATTRIBUTE] = origins


def place_of(cfg: CfgNode, key: str) -> str:
    """Give `file:line: ` of a key, `override: `, or at least `file: `; to begin an error with."""
    origins = cfg.__dict__.get(_ATTRIBUTE)
    return "" if origins is None else f"{origins.places.get(key, origins.path)}: "


def is_stated(cfg: CfgNode, key: str) -> bool:
    """Whether a file or an override gives the key."""
    origins = cfg.__dict__.get(_ATTRIBUTE)
    return origins is not None and key in origins.places


def is_override(cfg: CfgNode, key: str) -> bool:
    """Whether the key was given as KEY VALUE, not by a file."""
    origins = cfg.__dict__.get(_ATTRIBUTE)
    return origins is not None and origins.places.get(key) == OVERRIDE
