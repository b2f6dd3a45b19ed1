"""Node GID."""

from dataclasses import dataclass
from typing import ClassVar

from configs.stock_limits import MAX_SIDE

from .base import MAX_WEIGHT, FieldChecks


@dataclass(frozen=True, kw_only=True)
class GidConfig:
    """Node GID: selection of general instances and the three distillation losses.

    Defaults are the paper's for COCO (Dai et al., CVPR 2021, section 4.1).

    Raises:
        ValueError: a field is outside its limits.
    """

    node: ClassVar[str] = "GID"
    SCORES: ClassVar[tuple[str, ...]] = ("per_class", "max", "centered")
    MODES: ClassVar[tuple[str, ...]] = ("all", "pos", "semi_pos", "neg")
    ADAPTATIONS: ClassVar[tuple[str, ...]] = ("conv3x3", "conv1x1", "none")
    SCOPES: ClassVar[tuple[str, ...]] = ("batch", "image")
    BOXES: ClassVar[tuple[str, ...]] = ("general", "ground_truth")

    # per_class: max over classes of |P_t - P_s| (the paper); max: |max P_t - max P_s|; centered:
    # as per_class, of sqrt(P * centerness), by which FCOS ranks its boxes.
    score: str = "per_class"
    # general: the boxes that teacher and student disagree on, and the keys up to MIN_SIDE choose;
    # ground_truth: the annotated objects in their place (ablation).
    boxes: str = "general"
    # Which GIs take part: all, or by their overlap with ground truth (ablation).
    mode: str = "all"
    # GIs of one image after NMS (the paper's K).
    top_k: int = 10
    # Candidates of one image before NMS.
    pre_nms: int = 3000
    # IoU above which the lower-scored of two GI boxes is dropped.
    nms_iou: float = 0.3
    # GI boxes with a side of this or less are dropped, pixels of the view.
    min_side: float = 10.0
    # Output side of ROIAlign, cells.
    roi_size: int = 10
    # Samples of one ROIAlign cell along each axis; 0 lets it depend on the box.
    sampling_ratio: int = 2
    # Layer that brings the student's features to the teacher's before the comparison.
    adaptation: str = "conv3x3"
    # Weight of the feature loss.
    feature_weight: float = 5e-4
    # Weight of the relation loss.
    relation_weight: float = 40.0
    # GIs whose pairs are compared: those of the whole batch, or of each image.
    relation_scope: str = "batch"
    # Weight of the classification part of the response loss.
    response_cls_weight: float = 0.1
    # Weight of the box part of the response loss.
    response_reg_weight: float = 1.0
    # Beta of the smooth L1 of that part; 0 is plain L1.
    response_reg_beta: float = 0.0
    # Weight of the classification part of the box head's response on the teacher's proposals, of
    # two-stage detectors alone (beyond the paper); 0: none.
    box_head_cls_weight: float = 0.0
    # Weight of the box part of that response, a smooth L1 of RESPONSE_REG_BETA; 0: none.
    box_head_reg_weight: float = 0.0

    def __post_init__(self) -> None:
        checks = FieldChecks(self)
        checks.choice("score", self.SCORES)
        checks.choice("boxes", self.BOXES)
        checks.choice("mode", self.MODES)
        checks.integer("top_k", at_least=1)
        checks.integer("pre_nms", at_least=1)
        checks.number("nms_iou", above=0.0, at_most=1.0)
        checks.number("min_side", at_most=MAX_SIDE)
        checks.integer("roi_size", at_least=1, at_most=256)
        checks.integer("sampling_ratio", at_least=0, at_most=256)
        checks.choice("adaptation", self.ADAPTATIONS)
        checks.weight("feature_weight")
        checks.weight("relation_weight")
        checks.choice("relation_scope", self.SCOPES)
        checks.weight("response_cls_weight")
        checks.weight("response_reg_weight")
        checks.number("response_reg_beta", at_most=MAX_WEIGHT)
        checks.weight("box_head_cls_weight")
        checks.weight("box_head_reg_weight")
        if self.boxes == "ground_truth" and self.mode != "all":
            raise checks.refusal("mode", "all with GID.BOXES ground_truth, whose kind is known")
        if self.pre_nms < self.top_k:
            raise checks.refusal("pre_nms", f"at least GID.TOP_K {self.top_k}")
