"""Which family a config's detector is of: the registry, open to modules of the user's.

A meta-architecture is of the family of the nearest class that it derives from. Where its class
cannot be told, such as of a function registered in its place, `MODEL.FAMILY` names the family.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.modeling import META_ARCH_REGISTRY

from configs.origins import place_of
from configs.stock_limits import value_of
from configs.wording import full_name

from .base import BoxTransform, DetectorFamily, TrainingStep, TwoStageFamily
from .faster_rcnn import FasterRcnnFamily
from .fcos import FcosFamily
from .outputs import DenseOutputs
from .retinanet import RetinaNetFamily

__all__ = [
    "BoxTransform",
    "DenseOutputs",
    "DetectorFamily",
    "TrainingStep",
    "TwoStageFamily",
    "family_of",
    "find_family",
    "num_classes",
    "register_family",
]

_SHIPPED: tuple[DetectorFamily, ...] = (RetinaNetFamily(), FcosFamily(), FasterRcnnFamily())
_FAMILIES: dict[str, DetectorFamily] = {one.name: one for one in _SHIPPED}


def register_family(family: DetectorFamily) -> None:
    """Make a family known; a module that `IMPORTS` names may call this.

    Raises:
        ValueError: there is one of this name.
    """
    known = _FAMILIES.get(family.name)
    if known is not None:
        both = (full_name(type(one)) for one in (known, family))
        raise ValueError(f"both {' and '.join(both)} are the family {family.name!r}; rename one")
    _FAMILIES[family.name] = family


def family_of(cfg: CfgNode) -> DetectorFamily:
    """Find the family of a config's detector.

    Raises:
        ValueError: there is none, or not the one that `MODEL.FAMILY` names; or the detector's class
            has a method of its own that its family would go around.
    """
    family = find_family(cfg)
    stated = _stated(cfg, "MODEL.META_ARCHITECTURE")
    if family is None:
        known = ", ".join(_FAMILIES)
        raise ValueError(f"{stated}; distillation supports: {known}, and what derives from them")
    own = "" if cfg.MODEL.FAMILY else _own_method(_registered(cfg), family)
    if own:
        raise ValueError(
            f"{stated}, which has its own {own}(); distillation runs the parts of a {family.name} "
            "itself and would go around it; override another method, or, if it changes neither "
            f"outputs nor losses, set MODEL.FAMILY {family.name}"
        )
    return family


def find_family(cfg: CfgNode) -> DetectorFamily | None:
    """The family of a config's detector, which plain training need not have: None then.

    Raises:
        ValueError: `MODEL.FAMILY` names no family, or another one than that of the class.
    """
    name, model = cfg.MODEL.FAMILY, _registered(cfg)
    if not name:
        return _family_of_class(model)
    if name not in _FAMILIES:
        raise ValueError(
            f"{_stated(cfg, 'MODEL.FAMILY')}; expected one of: {', '.join(_FAMILIES)}, or '' for "
            "that of the class of MODEL.META_ARCHITECTURE"
        )
    family = _FAMILIES[name]
    if isinstance(model, type) and not issubclass(model, family.architecture):
        raise ValueError(
            f"{_stated(cfg, 'MODEL.FAMILY')}, but {cfg.MODEL.META_ARCHITECTURE} does not derive "
            f"from {family.architecture.__name__}; leave it empty, or derive from that"
        )
    return family


def num_classes(cfg: CfgNode) -> tuple[str, int] | None:
    """The key that holds the number of classes, and its value; None where there is no family.

    Raises:
        ValueError: as `find_family`.
    """
    family = find_family(cfg)
    key = family.num_classes_key if family else None
    return None if key is None else (key, value_of(cfg, key))


def _registered(cfg: CfgNode) -> Any:
    """What detectron2 would call for this config: a class, or any function; None if nothing."""
    name = cfg.MODEL.META_ARCHITECTURE
    return META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None


def _family_of_class(model: Any) -> DetectorFamily | None:
    ancestors = model.__mro__ if isinstance(model, type) else ()
    families = (f for one in ancestors for f in _FAMILIES.values() if f.architecture is one)
    return next(families, None)


def _own_method(model: Any, family: DetectorFamily) -> str:
    """The name of a method that a class has for itself, but its family goes around; "" if none."""
    own = (n for n in family.replaced if getattr(model, n) is not getattr(family.architecture, n))
    return next(own, "")


def _stated(cfg: CfgNode, key: str) -> str:
    return f"{place_of(cfg, key)}{key} is {value_of(cfg, key)!r}"
