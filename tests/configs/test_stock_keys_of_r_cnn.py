"""What users of R-CNNs set: which of detectron2's own are taken, and the keys of another family."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import detectron2
import pytest
from detectron2.config import CfgNode

from configs.loader import load_config
from configs.stock_keys import COMMANDS, PLAIN, STAGES, STUDENTS, TEACHER, refuse_ignored

ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"
SCALES = ["VIEWS.SCALES", "(640, 672, 704, 736, 768, 800)"]

# Key to a value that a user would set, and where that is refused.
KEYS: dict[str, tuple[Any, tuple[str, ...]]] = {
    "MODEL.RETINANET.NUM_CLASSES": (3, COMMANDS),
    "MODEL.RETINANET.SCORE_THRESH_TEST": (0.7, COMMANDS),
    "MODEL.RETINANET.NMS_THRESH_TEST": (0.7, COMMANDS),
    "MODEL.MASK_ON": (True, STUDENTS),
    "MODEL.KEYPOINT_ON": (True, STUDENTS),
    "MODEL.ROI_HEADS.NAME": ("CascadeROIHeads", (*STUDENTS, TEACHER)),
    "MODEL.ROI_HEADS.IN_FEATURES": (["p2", "p7"], (*STUDENTS, TEACHER)),
    "MODEL.RPN.IN_FEATURES": (["p5"], (*STUDENTS, TEACHER)),
    "MODEL.PROPOSAL_GENERATOR.NAME": ("RRPN", (*STUDENTS, TEACHER)),
    "MODEL.ROI_BOX_HEAD.USE_SIGMOID_CE": (True, ()),
    # Those that act.
    "MODEL.ROI_HEADS.NUM_CLASSES": (3, ()),
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": (0.7, ()),
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": (0.7, ()),
}


def configured(views: Sequence[str] = tuple(SCALES), **changes: Any) -> CfgNode:
    """A Faster R-CNN of the model zoo at the sizes of its views; `__` in a name is a dot."""
    given = [str(one) for key, value in changes.items() for one in (key.replace("__", "."), value)]
    return load_config(str(ZOO / "COCO-Detection/faster_rcnn_R_50_FPN_1x.yaml"), [*views, *given])


def refusal(cfg: CfgNode, reader: str) -> str:
    """What a command says; "" if nothing."""
    try:
        refuse_ignored(cfg, reader)
    except ValueError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


@pytest.mark.parametrize("key", list(KEYS))
def test_a_key_is_refused_where_it_would_be_ignored(key: str) -> None:
    value, refused_in = KEYS[key]
    cfg = configured(**{key: value})
    for reader in (*COMMANDS, TEACHER):
        message = refusal(cfg, reader)
        assert (f"{key} is {value!r}, but " in message) == (reader in refused_in), message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("COCO-Detection/faster_rcnn_R_50_C4_1x.yaml", "C4 (Res5ROIHeads) has no pyramid"),
        ("COCO-Detection/faster_rcnn_R_50_DC5_1x.yaml", "C4 and DC5 have no pyramid"),
        ("Misc/cascade_mask_rcnn_R_50_FPN_1x.yaml", "Cascade R-CNN (CascadeROIHeads) has three"),
        ("COCO-Detection/fast_rcnn_R_50_FPN_1x.yaml", "takes detectron2's RPN apart"),
    ],
)
def test_other_r_cnns_are_trained_but_not_distilled(name: str, said: str) -> None:
    given = ["MODEL.MASK_ON", "False", "MODEL.LOAD_PROPOSALS", "False"]
    for part in ("TRAIN", "TEST"):
        given += [f"DATASETS.PROPOSAL_FILES_{part}", "()"]
    plain, viewed = (load_config(str(ZOO / name), [*more, *given]) for more in ((), SCALES))
    for reader in (*STUDENTS, TEACHER):
        assert said in refusal(viewed, reader)
    assert not any(refusal(plain, reader) for reader in PLAIN)


@pytest.mark.parametrize(
    "name",
    [
        "COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml",
        "COCO-Detection/faster_rcnn_X_101_32x8d_FPN_3x.yaml",
        "COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml",
        "COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x.yaml",
    ],
)
def test_r_cnns_of_the_model_zoo_with_fpn_may_teach(name: str) -> None:
    assert not refusal(load_config(str(ZOO / name)), TEACHER)


def test_the_classes_of_another_family_s_key_may_say_the_same() -> None:
    stated = {"MODEL__RETINANET__NUM_CLASSES": 3, "MODEL__ROI_HEADS__NUM_CLASSES": 3}
    assert not any(refusal(configured(**stated), reader) for reader in STAGES)
    assert not any(refusal(configured((), **stated), reader) for reader in PLAIN)


def test_sigmoids_are_not_compared_as_softmaxes() -> None:
    cfg = configured(MODEL__ROI_BOX_HEAD__USE_SIGMOID_CE=True, GID__BOX_HEAD_CLS_WEIGHT=0.5)
    for reader in STUDENTS:
        assert "GID.BOX_HEAD_CLS_WEIGHT 0.5 compares softmaxes" in refusal(cfg, reader)
