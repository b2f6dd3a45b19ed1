"""A torchvision RetinaNet learns from a cached detectron2 teacher, in a plain PyTorch loop.

    python -m examples.torchvision_student CACHE FOLDER STEPS

The methods are functions on tensors: here PKD, on the pyramid levels of both (strides 8 to 64).
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor
from torchvision.models.detection import RetinaNet, retinanet_resnet50_fpn
from torchvision.models.detection.image_list import ImageList

from examples.records import TeacherRecords
from stage2_distill.methods.layers import apply_each, per_level, where_channels_differ
from stage2_distill.methods.pkd import pkd_loss

LEVELS = 4  # P3 to P6
WEIGHT = 10.0


def own_losses(
    student: RetinaNet, images: Tensor, item: dict[str, Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The student's loss on ground truth, and its pyramid."""
    pyramid = list(student.backbone(images).values())
    head = student.head(pyramid)
    sizes = [(int(item["image"].shape[1]), int(item["image"].shape[2]))]
    anchors = student.anchor_generator(ImageList(images, sizes), pyramid)
    targets = [{"boxes": item["boxes"].float(), "labels": item["classes"]}]
    losses = student.compute_loss(targets, head, anchors)
    return torch.stack(list(losses.values())).sum(), pyramid


def padded(image: Tensor, size: tuple[int, int]) -> Tensor:
    """(1, 3, H, W) float of (3, h, w) uint8, zero at the right and below, as the teacher saw it."""
    batch = torch.zeros(1, 3, *size)
    batch[0, :, : image.shape[1], : image.shape[2]] = image / 57.5 - 2.0
    return batch


def train(cache: str, folder: Path, steps: int) -> list[float]:
    """Train; the distillation loss of every step."""
    torch.manual_seed(0)
    records = TeacherRecords(cache, folder, ("features",))
    student = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).train()
    channels = records[0]["pyramid"][0].shape[1]
    adaptations = per_level(lambda: where_channels_differ(256, channels), LEVELS)
    optimizer = torch.optim.AdamW([*student.parameters(), *adaptations.parameters()], lr=1e-4)
    found = []
    for step in range(steps):
        item = records[step % len(records)]
        loss, pyramid = own_losses(student, padded(item["image"], item["padded"]), item)
        teacher = item["pyramid"][:LEVELS]
        inside = [torch.ones_like(level[:, :1], dtype=torch.bool) for level in teacher]
        adapted = apply_each(adaptations, pyramid[:LEVELS])
        distilled = pkd_loss(adapted, teacher, inside)
        optimizer.zero_grad()
        (loss + WEIGHT * distilled).backward()
        optimizer.step()
        found.append(float(distilled.detach()))
        print(f"step {step}: own {float(loss.detach()):.3f}, pkd {found[-1]:.3f}")
    return found


if __name__ == "__main__":
    train(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
