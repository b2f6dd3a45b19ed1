"""A batch of a dump on a pretended GPU, and what follows its forward: what is waited for, launched.

See `transfers`, the command.
"""

from __future__ import annotations

from inspect import unwrap

import torch
from detectron2.modeling import build_model

from configs.loader import load_config
from detectors import family_of
from detectors.stored import Stored
from stage1_dump.teacher import Teacher
from storage import RecordCodec, get_preset

from .pipeline import CONFIGS
from .pretended_gpu import GPU, PretendedGpu
from .rows import Row
from .step_counts import NARROW, print_lines

SIZE = (256, 320)
# Of a batch, and of each of its images: NMS of a dense detector waits once, and detectron2's
# inference of boxes of proposals goes image by image.
WAITS_LIMIT, LAUNCHES_LIMIT = 3, 220
WAITS_OF_IMAGE = {"retinanet": 1, "fcos": 1, "faster_rcnn": 7}
LAUNCHES_OF_IMAGE = 40
# The nodes whose threshold decides what may become a final box.
_NODES = {"retinanet": "RETINANET", "fcos": "FCOS", "faster_rcnn": "ROI_HEADS"}


def measure_dump(family: str, images: int, *, lines: bool = False) -> list[Row]:
    """Count what follows the forward of a batch: encoding and final boxes."""
    gpu = _encoded(family, images)
    waits, launches = gpu.waits.total(), gpu.launches.total()
    name = f"{family}, {images} images of a dump"
    print(f"{name}: waits {waits}, launches {launches}")
    if lines:
        print_lines(gpu.waits, gpu.launches)
    waits_limit = WAITS_LIMIT + images * WAITS_OF_IMAGE[family]
    launches_limit = LAUNCHES_LIMIT + images * LAUNCHES_OF_IMAGE
    return [
        Row(name=f"waits, {name}", value=waits, limit=waits_limit),
        Row(name=f"launches, {name}", value=launches, limit=launches_limit),
    ]


def _encoded(family: str, images: int) -> PretendedGpu:
    """Encode a batch of random views, where every score is that of a candidate."""
    options = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 50, *NARROW]
    # With more proposals their candidates would be so many that NMS went class by class.
    options += ["MODEL.RPN.POST_NMS_TOPK_TEST", 100]
    options += [f"MODEL.{_NODES[family]}.SCORE_THRESH_TEST", 0.0]
    cfg = load_config(str(CONFIGS / "teacher" / f"{family}_r101_1x.yaml"), options)
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    for name, tensor in model.state_dict().items():
        if name.endswith("conv3.norm.weight"):
            tensor.fill_(0.1)  # else frozen layers overflow
    stored = Stored.of(cfg, family_of(cfg))
    codec = RecordCodec.of_preset(
        get_preset("balanced"), stored.signals, num_detections=cfg.TEST.DETECTIONS_PER_IMAGE
    )
    views = [torch.randint(0, 256, (3, *SIZE), dtype=torch.uint8) for _ in range(images)]
    # Both are in inference mode, which has no place for pretended tensors.
    run, encode = unwrap(Teacher.run), unwrap(Teacher.encode)
    with PretendedGpu() as gpu, torch.no_grad():
        teacher = Teacher(model=model.to(GPU), stored=stored, precision="float32", codec=codec)
        geometry = stored.geometry(*SIZE)
        outputs = run(teacher, views)
        encode(teacher, outputs, geometry)  # what is kept from batch to batch
        gpu.waits.clear()
        gpu.launches.clear()
        encode(teacher, outputs, geometry)
    return gpu
