"""Final boxes of dense detectors, for a batch at once: RetinaNet, FCOS.

detectron2 goes image by image and level by level, in small steps of which many wait for a GPU. Here
all steps but two are taken once for a batch: the best of each level, and NMS. The values are
computed by the same operations on the same operands, so that the boxes are the same, bit for bit.

Shape letters: N images, K classes, R places of an image (all levels), M candidates of a batch, F
boxes found in an image, D rows of an image.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
from detectron2.layers import batched_nms, nms
from detectron2.modeling.meta_arch.dense_detector import DenseDetector
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ..detections import pack_detections, side_by_side
from .outputs import DenseOutputs

# What is done here in their place.
_STEPS = (
    "inference_single_image",
    "_decode_multi_level_predictions",
    "_decode_per_level_predictions",
)


def dense_detections(
    architecture: type[DenseDetector],
    model: DenseDetector,
    outputs: DenseOutputs,
    scores: Tensor,
    rows: int,
) -> Tensor:
    """Threshold, best of each level, boxes, NMS by class, best of all, clipping.

    A GPU is waited for twice, and once more for each image.

    Args:
        architecture: detectron2's class, from which that of the model may derive. Where it has its
            own `inference_single_image`, that is called for each image.
        model, outputs: of the batch; not modified.
        scores: (N, R, K) between 0 and 1, by which boxes are ranked.
        rows: D.

    Returns:
        (N, D, 6), see `pack_detections`.
    """
    own = any(getattr(type(model), name) is not getattr(architecture, name) for name in _STEPS)
    found = _image_by_image(model, outputs, scores) if own else _at_once(model, outputs, scores)
    return pack_detections(found, outputs.image_sizes, rows)


def _image_by_image(model: DenseDetector, outputs: DenseOutputs, scores: Tensor) -> Tensor:
    """What the model's class finds, (N, F, 6) as `pack_detections` takes it."""
    counts = outputs.anchors_per_level
    anchors = outputs.level_anchors
    return side_by_side(
        [
            model.inference_single_image(
                anchors, list(score.split(counts)), list(deltas.split(counts)), size
            )
            for score, deltas, size in zip(scores, outputs.deltas, outputs.image_sizes, strict=True)
        ]
    )


def _at_once(model: DenseDetector, outputs: DenseOutputs, scores: Tensor) -> Tensor:
    """The same of detectron2's own class."""
    num_places, num_classes = scores.shape[1:]
    levels = outputs.anchors_per_level
    chosen, counts = _best(scores, levels, model.test_score_thresh, model.test_topk_candidates)
    places, classes = chosen // num_classes, chosen % num_classes
    boxes = model.box2box_transform.apply_deltas(
        outputs.deltas.flatten(0, 1)[places], outputs.anchors[places % num_places]
    )
    found = torch.cat([boxes, scores.flatten()[chosen][:, None], classes[:, None].to(boxes)], dim=1)
    of_images = [sum(counts[i : i + len(levels)]) for i in range(0, len(counts), len(levels))]
    left = _nms(found, places // num_places, of_images, model.test_nms_thresh)
    final = [
        part[kept[: model.max_detections_per_image]]
        for part, kept in zip(found.split(of_images), left, strict=True)
    ]
    return pad_sequence(final, batch_first=True, padding_value=-1)


def _best(
    scores: Tensor, levels: Sequence[int], threshold: float, most: int
) -> tuple[Tensor, list[int]]:
    """The best candidates of each level of each image.

    Args:
        scores: (N, R, K).
        levels: counts that add up to R.
        threshold: what a candidate's score is above.
        most: of a level.

    Returns:
        (M,) positions in the flat scores, image by image and level by level, best first; and how
        many there are of each level of each image.
    """
    flat = scores.flatten()
    above = (flat > threshold).nonzero()[:, 0]
    sizes = [size * scores.shape[2] for size in levels] * len(scores)
    bounds = torch.tensor([0, *accumulate(sizes)]).to(flat.device, non_blocking=True)
    starts = torch.searchsorted(above, bounds)
    found = [end - start for start, end in pairwise(starts.tolist())]
    counts = [min(one, most) for one in found]
    # Each by itself, and of its candidates alone: among equal scores `topk` then takes the same as
    # detectron2's. It does not wait.
    best = [
        part.topk(count).indices
        for part, count in zip(flat[above].split(found), counts, strict=True)
    ]
    begun = starts[:-1].repeat_interleave(starts.diff().clamp(max=most), output_size=sum(counts))
    return above[begun + torch.cat(best)], counts


def _nms(found: Tensor, images: Tensor, counts: list[int], threshold: float) -> list[Tensor]:
    """Numbers of an image's boxes that are left, best first, for each image.

    Args:
        found: (M, 6): box, score, class; image by image.
        images: (M,), the image of each.
        counts: of the images.
        threshold: IoU above which the lower-scored of two boxes of a class is dropped.
    """
    boxes, classes = found[:, :4], found[:, 5]
    # As torchvision's `batched_nms`, which copies a 1 to the GPU for each image: so far apart that
    # boxes of different classes do not meet.
    furthest = boxes.new_zeros(len(counts)).scatter_reduce(
        0, images, boxes.amax(dim=1), "amax", include_self=False
    )
    apart = boxes + (classes * (furthest + 1)[images])[:, None]
    # More numbers than these it does not move apart, but takes class by class.
    most = 4_000 if boxes.device.type == "cpu" else 100_000
    return [
        batched_nms(part[:, :4], part[:, 4], part[:, 5], threshold)
        if 4 * len(part) > most
        else nms(moved, part[:, 4], threshold)
        for part, moved in zip(found.split(counts), apart.split(counts), strict=True)
    ]
