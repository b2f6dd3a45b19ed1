"""Every YAML that ships loads, fits its partners, and trains a step at reduced size."""

from pathlib import Path
from typing import Any

import detectron2
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.solver import build_optimizer
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage

from configs.loader import load_config, settings, teacher_config
from configs.safe_yaml import read_yaml
from detectors import family_of
from detectors.building import build_detector

ZOO = Path(detectron2.__file__).parent / "model_zoo" / "configs"
ROOT = Path(__file__).resolve().parents[2] / "configs"
# How the names of those begin that are parts of others, and no detector by themselves.
FRAGMENTS = "common"
FILES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in ROOT.rglob("*.yaml")
    # Sweeps are overrides of configs, which tests of their own look at.
    if not path.name.startswith(FRAGMENTS) and path.parent.name != "sweeps"
)
PAIRINGS = [name for name in FILES if name.startswith("distill/")]
SMALL = [
    f"{data}{family}"
    for data in ("demo", "photographs")
    for family in ("", "_fcos", "_faster_rcnn")
]
DISTILLED = [*PAIRINGS, *(f"{name}/distill.yaml" for name in (*SMALL, "voc"))]

# The depth stays, so that every key that shapes the network is used; the width goes.
SLIM = [
    *("MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.FPN.OUT_CHANNELS", 32),
    *("MODEL.RETINANET.NUM_CONVS", 1, "MODEL.RETINANET.NUM_CLASSES", 3),
    *("MODEL.ROI_BOX_HEAD.FC_DIM", 16, "MODEL.ROI_HEADS.NUM_CLASSES", 3),
    *("MODEL.FCOS.NUM_CONVS", 1, "MODEL.FCOS.NUM_CLASSES", 3),
]
# By what is in a backbone's name; detectron2's ResNet-18 and -34 insist on their width.
SLIM_NETS: dict[str, list[Any]] = {
    "_resnet_": [
        *("MODEL.RESNETS.WIDTH_PER_GROUP", 2, "MODEL.RESNETS.STEM_OUT_CHANNELS", 4),
        *("MODEL.RESNETS.RES2_OUT_CHANNELS", 8),
    ],
    "_mobilenet_v2_": ["MODEL.MOBILENET_V2.WIDTH", 0.1],
    "_regnet_": [
        *("MODEL.REGNET.STEM_WIDTH", 8, "MODEL.REGNET.GROUP_WIDTH", 8),
        *("MODEL.REGNET.W_0", 8, "MODEL.REGNET.W_A", 1.0, "MODEL.REGNET.W_M", 1.6),
    ],
    "_swin_": ["MODEL.SWIN.EMBED_DIM", 12, "MODEL.SWIN.NUM_HEADS", [1, 2, 2, 2]],
}


def load(name: str, overrides: list[Any] | None = None) -> CfgNode:
    return load_config(str(ROOT / name), overrides or [])


def slim(name: str) -> CfgNode:
    stated = load(name).MODEL
    if stated.RESNETS.DEPTH < 50:
        return load(name, SLIM)
    nets = [keys for net, keys in SLIM_NETS.items() if net in stated.BACKBONE.NAME]
    return load(name, [*SLIM, *(key for keys in nets for key in keys)])


def make_batch() -> list[dict[str, Any]]:
    """Two images of 64 px: one with an object, one without."""
    with_object = Instances((64, 64))
    with_object.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 48.0, 48.0]]))
    with_object.gt_classes = torch.tensor([1])
    without = Instances((64, 64))
    without.gt_boxes = Boxes(torch.zeros(0, 4))
    without.gt_classes = torch.zeros(0, dtype=torch.int64)
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=generator),
            "instances": instances,
        }
        for instances in (with_object, without)
    ]


@pytest.mark.parametrize("name", FILES)
def test_every_config_trains_a_step(name: str) -> None:
    torch.manual_seed(0)
    cfg = slim(name)
    model = build_detector(cfg).train()
    optimizer = build_optimizer(cfg, model)
    # The warm-up of the schedule would start from nearly zero anyway.
    for group in optimizer.param_groups:
        group["lr"] = 1e-3
    before = {key: value.clone() for key, value in model.named_parameters()}

    with EventStorage():
        losses = model(make_batch())
    sum(losses.values()).backward()
    optimizer.step()

    assert all(torch.isfinite(loss) and loss > 0 for loss in losses.values())
    trained = {key: value for key, value in model.named_parameters() if value.requires_grad}
    assert all(value.grad is not None for value in trained.values())
    assert any(not value.equal(before[key]) for key, value in trained.items())


@pytest.mark.parametrize(
    ("name", "stock"),
    [
        ("base_retinanet.yaml", "Base-RetinaNet.yaml"),
        ("base_faster_rcnn.yaml", "Base-RCNN-FPN.yaml"),
        ("teacher/faster_rcnn_r101_3x.yaml", "COCO-Detection/faster_rcnn_R_101_FPN_3x.yaml"),
    ],
)
def test_the_base_is_the_stock_one_at_one_scale(name: str, stock: str) -> None:
    theirs, ours = load_config(str(ZOO / stock)), load(name)
    if name.startswith("base_"):
        ours.INPUT.MIN_SIZE_TRAIN = theirs.INPUT.MIN_SIZE_TRAIN
    ours.OUTPUT_DIR = theirs.OUTPUT_DIR
    ours.MODEL.ROI_MASK_HEAD = theirs.MODEL.ROI_MASK_HEAD  # which no model here has
    assert ours == theirs


@pytest.mark.parametrize("name", DISTILLED)
def test_a_pairing_names_the_checkpoint_that_its_teacher_s_training_writes(name: str) -> None:
    cfg = load(name)

    trained = load_config(cfg.TEACHER.CONFIG)

    assert f"{trained.OUTPUT_DIR}/model_final.pth" == cfg.TEACHER.WEIGHTS


@pytest.mark.parametrize("name", DISTILLED)
def test_student_and_teacher_agree_on_classes_and_anchors(name: str) -> None:
    cfg = load(name)
    teacher = teacher_config(cfg)

    family = family_of(cfg)
    assert family.pairing(cfg) == family_of(teacher).pairing(teacher)
    assert family.levels(cfg) == family.levels(teacher)


@pytest.mark.parametrize("name", DISTILLED)
def test_a_distilled_student_is_its_baseline_with_a_teacher(name: str) -> None:
    """What differs from the baseline is the distillation alone, so that the two compare."""
    cfg = load(name)
    stated = read_yaml(str(ROOT / name))["_BASE_"]
    bases = [stated] if isinstance(stated, str) else stated
    (baseline,) = (one for one in bases if "student" in one)
    other = load_config(str((ROOT / name).parent / baseline))

    for node in ("MODEL", "INPUT", "DATASETS", "SOLVER", "SEED"):
        assert cfg[node] == other[node], node


@pytest.mark.parametrize("name", DISTILLED)
def test_views_have_the_sizes_that_the_baseline_trains_at(name: str) -> None:
    cfg = load(name)
    views = settings(cfg).views

    if "_jitter_" in name:
        # Its baseline trains on these views too, with TEACHER.SOURCE none.
        side = int(Path(name).stem.rpartition("_")[2])
        assert (views.scale_range, views.fixed_size) == ((0.1, 2.0), (side, side))
        return
    assert views.scales == cfg.INPUT.MIN_SIZE_TRAIN
    assert views.max_size == cfg.INPUT.MAX_SIZE_TRAIN


def test_pairings_share_a_cache_only_where_teacher_views_and_codec_agree() -> None:
    contents: dict[str, Any] = {}
    for name in PAIRINGS:
        made = settings(load(name))
        content = (made.teacher.weights, made.views, made.cache)
        assert contents.setdefault(made.cache.location, content) == content
    assert len(set(contents.values())) == len(contents)


@pytest.mark.parametrize("name", PAIRINGS)
def test_coco_pairings_use_the_paper_s_weights(name: str) -> None:
    cfg = load(name)
    gid = settings(cfg)["GID"]

    weights = (gid.feature_weight, gid.relation_weight)
    assert weights == (5e-4, 40.0)
    assert (gid.response_cls_weight, gid.response_reg_weight) == (0.1, 1.0)
    own = {
        "RetinaNet": cfg.MODEL.RETINANET.SMOOTH_L1_LOSS_BETA,
        "FasterRCNN": cfg.MODEL.RPN.SMOOTH_L1_BETA,
    }
    assert gid.response_reg_beta == own.get(family_of(cfg).name, 0.0)


def test_no_two_configs_write_into_one_folder() -> None:
    folders = [load(name).OUTPUT_DIR for name in FILES if not Path(name).name.startswith("base")]
    assert len(set(folders)) == len(folders)
