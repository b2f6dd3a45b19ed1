"""What users set and a command here would ignore: one table of refusals.

Plain training and evaluation are detectron2's and take its keys as they are; of our nodes they read
DATASET alone, and refuse overrides of the others, while a file may serve the stages too. The stages
take their images from the node VIEWS, and their detectors apart: there a key of detectron2's acts,
or is refused by its name. Keys of the student's training are not refused where a config that states
them is only dumped or shown.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

from detectron2.config import CfgNode, get_cfg

from configs.fcos_node import FCOS_DEFAULTS
from configs.nodes import NODES, OWN_NODES, DatasetConfig
from configs.origins import is_override, is_stated, place_of
from configs.stock_limits import value_of

# What reads a config: the commands, and the loader for the teacher's own.
TRAIN = "detectors train"
EVAL = "detectors eval"
DUMP = "stage1_dump"
DISTILL = "stage2_distill train"
SHOW = "stage2_distill show"
FIDELITY = "stage2_distill fidelity"
TEACHER = "TEACHER.CONFIG"

STAGES = (DUMP, DISTILL, SHOW, FIDELITY)
PLAIN = (TRAIN, EVAL)
COMMANDS = (*PLAIN, *STAGES)
# Where the config's own detector is taken apart.
STUDENTS = (DISTILL, SHOW, FIDELITY)

# Detectors of one stage, and the nodes below MODEL that their heads read.
HEADS = {"RetinaNet": ("RETINANET", "ANCHOR_GENERATOR"), "FCOS": ("FCOS",)}

Allowed = Callable[[CfgNode, Any], bool]


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """When a key is refused.

    Attributes:
        key: by its full name.
        readers: where it would be ignored.
        allowed: whether a value asks for nothing, or for what holds anyway.
        reason: why it has no effect and what to do instead; `{cfg.A.B}` is the value of a key.
    """

    key: str
    readers: tuple[str, ...]
    allowed: Allowed
    reason: str


def refuse_ignored(cfg: CfgNode, reader: str) -> None:
    """Refuse what a command would accept and ignore.

    Args:
        cfg: a config of `configs.loader`.
        reader: one of `COMMANDS`, or `TEACHER`.

    Raises:
        ValueError: the first such key; one line with its place, its value and what to do.
    """
    for refusal in REFUSALS:
        value = value_of(cfg, refusal.key)
        if reader in refusal.readers and not refusal.allowed(cfg, value):
            raise ValueError(
                f"{place_of(cfg, refusal.key)}{refusal.key} is {value!r}, but "
                f"{refusal.reason.format(cfg=cfg)}"
            )


def _one_of(*values: Any) -> Allowed:
    return lambda cfg, value: value in values


def _empty(_cfg: CfgNode, value: Any) -> bool:
    return len(value) == 0


def _not_empty(_cfg: CfgNode, value: Any) -> bool:
    return len(value) > 0


def _where_evaluated(cfg: CfgNode, value: Any) -> bool:
    return value == 0 or len(cfg.DATASETS.TEST) > 0


def _flips_agree(cfg: CfgNode, value: Any) -> bool:
    """Whether views are flipped as plain training is; its default asks for nothing."""
    flipped = {"horizontal": cfg.VIEWS.FLIP > 0, "vertical": cfg.VIEWS.FLIP_VERTICAL > 0}
    return value == "horizontal" or all(is_so == (value == way) for way, is_so in flipped.items())


def _crops_agree(cfg: CfgNode, value: bool) -> bool:
    crop = cfg.INPUT.CROP
    return not value or (crop.TYPE, *crop.SIZE) == tuple(cfg.VIEWS.CROP)


def _from_a_file(key: str) -> Allowed:
    return lambda cfg, value: not is_override(cfg, key)


@cache
def _stock() -> CfgNode:
    """Not to be changed: there is one for all."""
    return stock_config()


def _stock_or_as(key: str, *others: str) -> Allowed:
    """Whether a key is at detectron2's default, or says the same as another."""
    return lambda cfg, value: (
        value
        in [
            value_of(_stock(), key),
            *(value_of(cfg, other) for other in others),
        ]
    )


def _beside_views(key: str, other: str) -> Allowed:
    """Whether a size of plain training contradicts nobody who set it for views.

    A file may state both, for the baseline and for the views; whoever states this one alone, or on
    the command line, means the views.
    """

    def allowed(cfg: CfgNode, value: Any) -> bool:
        both = is_stated(cfg, other) and not is_override(cfg, key)
        return both or _stock_or_as(key, other)(cfg, value)

    return allowed


def stock_config() -> CfgNode:
    """detectron2's defaults, and those of FCOS, which it configures by Python files alone."""
    cfg = get_cfg()
    cfg.MODEL.FCOS = CfgNode(deepcopy(FCOS_DEFAULTS))
    return cfg


def head_nodes(cfg: CfgNode) -> tuple[str, ...]:
    """The nodes below MODEL that the head of a one-stage detector reads; none for all others.

    A class of the user's that derives from one reads the same nodes.
    """
    return next((HEADS[one] for one in _names_of(cfg) if one in HEADS), ())


def _names_of(cfg: CfgNode) -> list[str]:
    """The names of a detector's family and class, and of the classes that it derives from."""
    name = cfg.MODEL.META_ARCHITECTURE
    names = [cfg.MODEL.FAMILY, name]
    if {*HEADS, "GeneralizedRCNN", "FasterRCNN"} & set(names):
        return names
    # It imports PyTorch, which those who only read configs need not wait for.
    from detectron2.modeling import META_ARCH_REGISTRY

    model = META_ARCH_REGISTRY.get(name) if name in META_ARCH_REGISTRY else None
    return [one.__name__ for one in getattr(model, "__mro__", ())]


def _one_stage(allowed: Allowed) -> Allowed:
    return lambda cfg, value: not head_nodes(cfg) or allowed(cfg, value)


def _of_head(detector: str, allowed: Allowed) -> Allowed:
    return lambda cfg, value: head_nodes(cfg) != HEADS[detector] or allowed(cfg, value)


def _r_cnn(allowed: Allowed) -> Allowed:
    ours = {"GeneralizedRCNN", "FasterRCNN"}
    return lambda cfg, value: not ours & set(_names_of(cfg)) or allowed(cfg, value)


def _of_the_rpn(cfg: CfgNode, value: Any) -> bool:
    return set(value) <= set(cfg.MODEL.RPN.IN_FEATURES)


def _several(_cfg: CfgNode, value: Any) -> bool:
    return len(value) > 1


def _without_box_head_response(cfg: CfgNode, value: Any) -> bool:
    return not value or cfg.GID.BOX_HEAD_CLS_WEIGHT == 0


def _adamw(allowed: Allowed) -> Allowed:
    return lambda cfg, value: cfg.SOLVER.OPTIMIZER != "ADAMW" or allowed(cfg, value)


def _of_another_head(key: str) -> Iterator[Refusal]:
    """Refuse what a head of one stage does not read, unless it says the same as what it does."""
    _, node, name = key.split(".")
    for detector, nodes in HEADS.items():
        if node in nodes:
            continue
        own = f"MODEL.{nodes[0]}.{name}"
        is_known = name in _stock().MODEL[nodes[0]]
        way_out = f"reads {own}, which is {{cfg.{own}!r}}; set that one"
        yield Refusal(
            key=key,
            readers=COMMANDS,
            allowed=_of_head(detector, _stock_or_as(key, *([own] if is_known else []))),
            reason=f"{detector} {way_out if is_known else 'has no such setting; leave it out'}",
        )


def _head_keys() -> Iterator[str]:
    for name in ("NUM_CLASSES", "SCORE_THRESH_TEST", "NMS_THRESH_TEST"):
        yield f"MODEL.ROI_HEADS.{name}"
    for node in sorted({node for nodes in HEADS.values() for node in nodes}):
        yield from (f"MODEL.{node}.{name}" for name in _stock().MODEL[node])


def _of_retinanet(name: str) -> Refusal:
    """The other way round."""
    key, own = f"MODEL.RETINANET.{name}", f"MODEL.ROI_HEADS.{name}"
    return Refusal(
        key=key,
        readers=COMMANDS,
        allowed=_r_cnn(_stock_or_as(key, own)),
        reason=f"an R-CNN reads {own}, which is {{cfg.{own}!r}}; set that one",
    )


def _of_other_heads(key: str) -> Refusal:
    """A teacher may have them; `detectors.families` says then that they are ignored."""
    return Refusal(
        key=key,
        readers=STUDENTS,
        allowed=_r_cnn(_one_of(False)),
        reason="a distilled student has boxes alone; set it to False (a teacher may have it True)",
    )


# Keys that only the head of another detector reads.
OF_HEADS = (
    *(_of_retinanet(name) for name in ("NUM_CLASSES", "SCORE_THRESH_TEST", "NMS_THRESH_TEST")),
    *(refusal for key in _head_keys() for refusal in _of_another_head(key)),
)
# Why plain training and evaluation read nothing of a node of ours.
_NOT_PLAIN = {
    "VIEWS": "a plain detector sees no views: sizes, flip and crop of its images are those of "
    "INPUT; set those",
    "STUDENT_VIEWS": "a plain detector sees no views; leave it out, or train with `python -m "
    "stage2_distill train` and TEACHER.SOURCE none",
}
_NO_TEACHER = (
    "a plain detector has no teacher; leave it out, or train with `python -m stage2_distill train`"
)


def _of_node(name: str) -> Iterator[Refusal]:
    """A file may serve both ways, as that of a student does; an override is for this command."""
    for item in fields(NODES[name]):
        key = f"{name}.{item.name.upper()}"
        yield Refusal(
            key=key,
            readers=PLAIN,
            allowed=_from_a_file(key),
            reason=_NOT_PLAIN.get(name, _NO_TEACHER),
        )


# Keys of our nodes that are of no use to a plain detector.
OF_NODES = tuple(
    refusal for name in OWN_NODES if name != DatasetConfig.node for refusal in _of_node(name)
)
REFUSALS = (
    Refusal(
        key="DATASETS.TRAIN",
        readers=(TRAIN, *STAGES),
        allowed=_not_empty,
        reason="there is nothing to train on; name a registered dataset",
    ),
    Refusal(
        key="DATASETS.UNLABELED",
        readers=(TRAIN,),
        allowed=_empty,
        reason="a detector without a teacher learns nothing from images without labels; leave it "
        "empty",
    ),
    Refusal(
        key="DATASETS.UNLABELED",
        readers=(DISTILL,),
        allowed=lambda cfg, value: not value or cfg.TEACHER.SOURCE != "none",
        reason="TEACHER.SOURCE is none, and without a teacher nothing is learnt from images "
        "without labels; leave it empty",
    ),
    Refusal(
        key="DATASETS.TEST",
        readers=(EVAL,),
        allowed=_not_empty,
        reason="there is nothing to evaluate on; name a registered dataset",
    ),
    Refusal(
        key="INPUT.CROP.ENABLED",
        readers=STAGES,
        allowed=_crops_agree,
        reason="views are cropped by VIEWS.CROP, which is {cfg.VIEWS.CROP!r}; set it to False, or "
        "INPUT.CROP.TYPE and SIZE to the same",
    ),
    Refusal(
        key="INPUT.RANDOM_FLIP",
        readers=STAGES,
        allowed=_flips_agree,
        reason="views are flipped by VIEWS.FLIP, which is {cfg.VIEWS.FLIP}, and "
        "VIEWS.FLIP_VERTICAL, which is {cfg.VIEWS.FLIP_VERTICAL}; make the probabilities of what "
        "is not wanted 0.0, or set this to horizontal, its default",
    ),
    Refusal(
        key="VIEWS.LAST",
        readers=(DISTILL,),
        allowed=lambda cfg, value: all(view < cfg.VIEWS.NUM for view in value),
        reason="views are numbered from 0, below VIEWS.NUM {cfg.VIEWS.NUM}; name some of these",
    ),
    Refusal(
        key="VIEWS.LAST_ITERS",
        readers=(DISTILL,),
        allowed=lambda cfg, value: value <= cfg.SOLVER.MAX_ITER,
        reason="the whole training has SOLVER.MAX_ITER {cfg.SOLVER.MAX_ITER} iterations; lower it",
    ),
    Refusal(
        key="INPUT.MIN_SIZE_TRAIN",
        readers=STAGES,
        allowed=_beside_views("INPUT.MIN_SIZE_TRAIN", "VIEWS.SCALES"),
        reason="views have the sizes of VIEWS.SCALES {cfg.VIEWS.SCALES!r}; set both alike",
    ),
    Refusal(
        key="INPUT.MAX_SIZE_TRAIN",
        readers=STAGES,
        allowed=_beside_views("INPUT.MAX_SIZE_TRAIN", "VIEWS.MAX_SIZE"),
        reason="views are at most VIEWS.MAX_SIZE {cfg.VIEWS.MAX_SIZE} long; set both alike",
    ),
    Refusal(
        key="INPUT.MIN_SIZE_TRAIN_SAMPLING",
        readers=STAGES,
        allowed=_one_of("choice"),
        reason="a view has one of VIEWS.SCALES; set it to choice, and list the sizes there",
    ),
    Refusal(
        key="INPUT.FORMAT",
        readers=(*STAGES, TEACHER),
        allowed=_one_of("BGR", "RGB"),
        reason="views have three channels; expected BGR or RGB",
    ),
    Refusal(
        key="INPUT.MASK_FORMAT",
        readers=STAGES,
        allowed=_one_of("polygon"),
        reason="distillation has boxes alone and reads no masks; leave it at polygon",
    ),
    Refusal(
        key="MODEL.WEIGHTS",
        readers=(DUMP,),
        allowed=_from_a_file("MODEL.WEIGHTS"),
        reason="these are the student's weights, and only the teacher is run; give TEACHER.WEIGHTS",
    ),
    Refusal(
        key="MODEL.WEIGHTS",
        readers=(FIDELITY,),
        allowed=_from_a_file("MODEL.WEIGHTS"),
        reason="the students to compare are named by --student FILE; give that",
    ),
    Refusal(
        key="TEACHER.SOURCE",
        readers=(SHOW, FIDELITY),
        allowed=_one_of("cache", "live"),
        reason="without a teacher there is nothing to show or to compare; set it to cache",
    ),
    Refusal(
        key="MODEL.MASK_ON",
        readers=COMMANDS,
        allowed=_one_stage(_one_of(False)),
        reason="{cfg.MODEL.META_ARCHITECTURE} has boxes alone; set it to False",
    ),
    Refusal(
        key="MODEL.KEYPOINT_ON",
        readers=COMMANDS,
        allowed=_one_stage(_one_of(False)),
        reason="{cfg.MODEL.META_ARCHITECTURE} has boxes alone; set it to False",
    ),
    *(_of_other_heads(f"MODEL.{name}_ON") for name in ("MASK", "KEYPOINT")),
    Refusal(
        key="MODEL.ROI_HEADS.NAME",
        readers=(*STUDENTS, TEACHER),
        allowed=_r_cnn(_one_of("StandardROIHeads")),
        reason="distillation takes the one box head of StandardROIHeads apart, on a pyramid: C4 "
        "(Res5ROIHeads) has no pyramid, Cascade R-CNN (CascadeROIHeads) has three heads; begin "
        "with Base-RCNN-FPN.yaml",
    ),
    Refusal(
        key="MODEL.RPN.IN_FEATURES",
        readers=(*STUDENTS, TEACHER),
        allowed=_r_cnn(_several),
        reason="C4 and DC5 have no pyramid, which is distilled; begin with Base-RCNN-FPN.yaml",
    ),
    Refusal(
        key="MODEL.ROI_HEADS.IN_FEATURES",
        readers=(*STUDENTS, TEACHER),
        allowed=_r_cnn(_of_the_rpn),
        reason="a record has the levels of MODEL.RPN.IN_FEATURES, {cfg.MODEL.RPN.IN_FEATURES!r}; "
        "name some of these",
    ),
    Refusal(
        key="MODEL.PROPOSAL_GENERATOR.NAME",
        readers=(*STUDENTS, TEACHER),
        allowed=_r_cnn(_one_of("RPN")),
        reason="distillation takes detectron2's RPN apart; set it to RPN",
    ),
    Refusal(
        key="MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE",
        readers=STUDENTS,
        allowed=_r_cnn(_without_box_head_response),
        reason="GID.BOX_HEAD_CLS_WEIGHT {cfg.GID.BOX_HEAD_CLS_WEIGHT} compares softmaxes; set "
        "either to 0",
    ),
    Refusal(
        key="MODEL.LOAD_PROPOSALS",
        readers=COMMANDS,
        allowed=_one_of(False),
        reason="precomputed proposals are not read here; set it to False",
    ),
    *(
        Refusal(
            key=f"DATASETS.PROPOSAL_FILES_{part}",
            readers=COMMANDS,
            allowed=_empty,
            reason="precomputed proposals are not read here; leave it empty",
        )
        for part in ("TRAIN", "TEST")
    ),
    *OF_HEADS,
    Refusal(
        key="TEST.AUG.ENABLED",
        readers=COMMANDS,
        allowed=_one_of(False),
        reason="images are evaluated once, as they are; set it to False",
    ),
    Refusal(
        key="TEST.EXPECTED_RESULTS",
        readers=COMMANDS,
        allowed=_empty,
        reason="results are printed and not compared with others; leave it empty",
    ),
    Refusal(
        key="TEST.KEYPOINT_OKS_SIGMAS",
        readers=COMMANDS,
        allowed=_empty,
        reason="boxes alone are evaluated; leave it empty",
    ),
    Refusal(
        key="TEST.PATIENCE",
        readers=(TRAIN, DISTILL),
        allowed=_where_evaluated,
        reason="DATASETS.TEST is empty, so that nothing is evaluated; name a registered dataset "
        "there, or set this to 0",
    ),
    Refusal(
        key="TEST.PRECISE_BN.ENABLED",
        readers=(DISTILL,),
        allowed=_one_of(False),
        reason="a distilled student keeps the statistics of its training; set it to False",
    ),
    Refusal(
        key="VIS_PERIOD",
        readers=(TRAIN,),
        allowed=_of_head("FCOS", _one_of(0)),
        reason="detectron2's FCOS draws nothing; set it to 0",
    ),
    Refusal(
        key="VIS_PERIOD",
        readers=(DISTILL,),
        allowed=_one_of(0),
        reason="training draws nothing; set it to 0, and look with `python -m stage2_distill show`",
    ),
    Refusal(
        key="SOLVER.NESTEROV",
        readers=(TRAIN, DISTILL),
        allowed=_adamw(_one_of(False)),
        reason="SOLVER.OPTIMIZER is ADAMW, which has no such momentum; set it to False",
    ),
    Refusal(
        key="SOLVER.MOMENTUM",
        readers=(TRAIN, DISTILL),
        allowed=_adamw(_one_of(0.9)),
        reason="SOLVER.OPTIMIZER is ADAMW, which has decay rates of its own; leave it at 0.9",
    ),
    *OF_NODES,
)
