"""A batch of a dump on a pretended GPU, and what its encoding waits for and launches.

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
# Config of a teacher, and the node whose threshold decides what may become a final box.
_TEACHERS = {
    "retinanet": ("retinanet_r101_1x.yaml", "RETINANET"),
    "fcos": ("fcos_r101_1x.yaml", "FCOS"),
    "faster_rcnn": ("faster_rcnn_r101_1x.yaml", "ROI_HEADS"),
}


def measure_dump(family: str, images: int, *, lines: bool = False) -> list[Row]:
    """Count what follows the forward of a batch: encoding and final boxes."""
    gpu = _encoded(family, images)
    waits, launches = gpu.waits.total(), gpu.launches.total()
    print(f"{family}, dump, {images} images: waits {waits}, launches {launches}")
    if lines:
        print_lines(gpu.waits, gpu.launches)
    name = f"dump, {family}, {images} images"
    return [
        Row(name=f"waits, {name}", value=waits, limit=0),
        Row(name=f"launches, {name}", value=launches, limit=0),
    ]


def _encoded(family: str, images: int) -> PretendedGpu:
    """Encode a batch of random views, whatever the teacher sees there a candidate."""
    config, node = _TEACHERS[family]
    options = ["MODEL.DEVICE", "cpu", "MODEL.WEIGHTS", "", "MODEL.RESNETS.DEPTH", 50, *NARROW]
    options += [f"MODEL.{node}.SCORE_THRESH_TEST", 0.0]
    cfg = load_config(str(CONFIGS / "teacher" / config), options)
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
