"""The distillation losses: against the reference, their gradients, their limits."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from configs.nodes import GidConfig
from detectors.families.matching import assigned_anchors
from stage2_distill.distiller import warmup_factor
from stage2_distill.methods.adaptation import Adaptation
from stage2_distill.methods.gid import Gid
from stage2_distill.methods.gid.losses import gid_losses
from stage2_distill.methods.gid.pooling import GiPooler
from tests.stage2_distill import reference
from tests.stage2_distill.cases import STRIDES, STYLES, Case, expected, make_case, matcher, tensor

SEEDS = st.integers(0, 2**32 - 1)
NAMES = ["feature", "relation", "response_cls", "response_reg"]
GOLDEN = Path(__file__).parent / "golden" / "losses.json"


def run(
    case: Case, config: GidConfig, *, adaptation: Adaptation | None = None, **overrides: Any
) -> dict[str, Tensor]:
    """The package's way from outputs to losses, as a training step takes it."""
    found = case.select(config)
    teacher = case.teacher()
    assigned = assigned_anchors(
        matcher(), found.boxes, found.valid, tensor(case.anchors), teacher.valid
    )
    pooler = GiPooler(STRIDES, config)
    channels = case.student_features[0].shape[1]
    layer = adaptation or Adaptation(
        config.adaptation, student_channels=channels, teacher_channels=channels
    )
    arguments: dict[str, Any] = {
        "config": config,
        "teacher": teacher,
        "rois": pooler.place(found.boxes, found.valid, "cpu"),
        "assigned": assigned.flatten().nonzero()[:, 0],
        "student_features": [tensor(level) for level in case.student_features],
        "student_logits": tensor(case.logits),
        "student_deltas": tensor(case.student_deltas),
        "adaptation": layer,
        "pooler": pooler,
    }
    warmup = overrides.pop("warmup", 1.0)
    terms = gid_losses(**(arguments | overrides))
    return {
        f"loss_gid_{term}": getattr(config, Gid.weights[term]) * warmup * value
        for term, value in terms.items()
    }


def random_layer(kind: str, *, channels: int, seed: int) -> Adaptation:
    """An adaptation that is far from the identity; numpy draws alike in every version."""
    layer = Adaptation(kind, student_channels=channels, teacher_channels=channels)
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.from_numpy(rng.standard_normal(parameter.shape) * 0.5))
    return layer


def reference_losses(case: Case, config: GidConfig, layer: Adaptation) -> dict[str, float] | None:
    """The same by the reference alone; None where rounding could change the selection."""
    rois: list[list[np.ndarray]] = [[], []]
    counts, assigned = [], []
    for number, image in enumerate(case.images):
        found = expected(case, number, config)
        counts.append(len(found.boxes))
        boxes = np.array(found.boxes).reshape(-1, 4)
        valid = case.on_batch_grid(number)[2]
        assigned.append(reference.assign(boxes, case.anchors, valid, 0.4, 0.5, True))
        student = [level[number].astype(float) for level in case.student_features]
        if layer.conv is not None and layer.conv.bias is not None:
            weight = layer.conv.weight.detach().double().numpy()
            bias = layer.conv.bias.detach().double().numpy()
            student = [reference.convolve(level, weight, bias) for level in student]
        # On the record's own grid: what edge replication must come to.
        teacher = [level.astype(float) for level in image.features]
        for box in found.boxes:
            for side, pyramid in enumerate((student, teacher)):
                pooled, close = reference.pool(
                    pyramid, list(STRIDES), box, config.roi_size, config.sampling_ratio
                )
                found.ambiguous |= close
                rois[side].append(pooled)
        if found.ambiguous:
            return None
    shape = (0, case.images[0].features[0].shape[0], config.roi_size, config.roi_size)
    sides = [np.stack(r) if r else np.zeros(shape) for r in rois]
    groups = counts if config.relation_scope == "image" else [sum(counts)]
    edges = np.cumsum([0, *groups])
    rows = [rois_.reshape(len(rois_), shape[1] * config.roi_size**2) for rois_ in sides]
    relation = [
        reference.relation_loss(rows[0][a:b], rows[1][a:b]) for a, b in pairwise(edges.tolist())
    ]
    placed = [case.on_batch_grid(number) for number in range(len(case.images))]
    classification, regression = reference.response_losses(
        case.logits.astype(float),
        case.student_deltas.astype(float),
        np.stack([p for p, _, _ in placed]).astype(float),
        np.stack([d for _, d, _ in placed]).astype(float),
        np.stack(assigned),
        config.response_reg_beta,
    )
    return {
        "loss_gid_feature": config.feature_weight * reference.feature_loss(*sides),
        "loss_gid_relation": config.relation_weight * sum(relation) / len(relation),
        "loss_gid_response_cls": config.response_cls_weight * classification,
        "loss_gid_response_reg": config.response_reg_weight * regression,
    }


@settings(max_examples=200, deadline=None)
@given(
    seed=SEEDS,
    style=st.sampled_from(STYLES),
    images=st.integers(1, 3),
    adaptation=st.sampled_from(GidConfig.ADAPTATIONS),
    score=st.sampled_from(GidConfig.SCORES),
    relation_scope=st.sampled_from(GidConfig.SCOPES),
    response_reg_beta=st.sampled_from([0.0, 0.1]),
    min_side=st.sampled_from([10.0, 1000.0]),
    top_k=st.integers(1, 5),
)
def test_losses_equal_the_reference(seed: int, style: str, images: int, **settings_: Any) -> None:
    """From outputs to weighted losses, mixed sizes and an adaptation that is not the identity."""
    case = make_case(seed, style, images=images)
    config = GidConfig(roi_size=3, **settings_)
    layer = random_layer(config.adaptation, channels=2, seed=seed)
    wanted = reference_losses(case, config, layer)
    assume(wanted is not None)
    found = run(case, config, adaptation=layer)
    assert list(found) == [f"loss_gid_{name}" for name in NAMES]
    for name, value in found.items():
        assert wanted is not None
        assert value.item() == pytest.approx(wanted[name], rel=2e-3, abs=1e-5), name


# Ten batches whose selection does not hang on rounding.
GOLDEN_SEEDS = range(11, 21)
GOLDEN_SCORES = ("per_class", "max")


def golden_case(seed: int) -> Case:
    """The batch of one golden step."""
    return make_case(seed, "random", images=1 + seed % 3, num_classes=4, channels=5)


def golden_losses() -> dict[str, dict[str, float]]:
    """What the golden file holds, computed anew."""
    result = {}
    for seed in GOLDEN_SEEDS:
        for score in GOLDEN_SCORES:
            config = GidConfig(
                score=score,
                relation_scope=GidConfig.SCOPES[seed % 2],
                response_reg_beta=(0.0, 0.1)[seed // 2 % 2],
            )
            layer = random_layer(GidConfig.ADAPTATIONS[seed % 3], channels=5, seed=seed)
            losses = run(golden_case(seed), config, adaptation=layer)
            result[f"seed {seed}, score {score}"] = {k: v.item() for k, v in losses.items()}
    return result


def test_losses_are_those_of_the_golden_file() -> None:
    """Ten steps whose losses a change that is no change of meaning must give again.

    After a change that is one: `python -m tests.stage2_distill.test_losses` writes the file.
    """
    golden = json.loads(GOLDEN.read_text())
    found = golden_losses()
    assert found.keys() == golden.keys()
    for name, losses in golden.items():
        assert found[name] == pytest.approx(losses, rel=1e-4), name


@pytest.mark.parametrize("score", GOLDEN_SCORES)
def test_the_golden_selections_do_not_hang_on_rounding(score: str) -> None:
    """Else another machine could rightly choose other instances."""
    config = GidConfig(score=score)
    for case in map(golden_case, GOLDEN_SEEDS):
        assert not any(expected(case, i, config).ambiguous for i in range(len(case.images)))


def test_the_golden_losses_are_all_at_work() -> None:
    """A golden zero would hide a loss that is never computed."""
    golden = json.loads(GOLDEN.read_text())
    for term in NAMES:
        values = [losses[f"loss_gid_{term}"] for losses in golden.values()]
        assert sum(value > 0 for value in values) >= len(values) * 3 / 4, term


def leaves_of(case: Case) -> dict[str, Any]:
    """The student's outputs with gradients."""
    return {
        "student_features": [tensor(level).requires_grad_() for level in case.student_features],
        "student_logits": tensor(case.logits).requires_grad_(),
        "student_deltas": tensor(case.student_deltas).requires_grad_(),
    }


def flat(leaves: dict[str, Any], layer: Adaptation) -> list[Tensor]:
    """Everything that must get a gradient."""
    outputs = [leaves["student_logits"], leaves["student_deltas"]]
    return [*leaves["student_features"], *outputs, *layer.parameters()]


@pytest.mark.parametrize("relation_scope", GidConfig.SCOPES)
def test_without_instances_all_losses_are_zero_and_connected(relation_scope: str) -> None:
    """Distributed training waits for a gradient of every parameter."""
    case = make_case(1, "random", images=2)
    layer = Adaptation("conv3x3", student_channels=2, teacher_channels=2)
    config = GidConfig(min_side=1000.0, relation_scope=relation_scope)
    leaves = leaves_of(case)
    losses = run(case, config, adaptation=layer, **leaves)
    assert [loss.item() for loss in losses.values()] == [0.0] * 4
    torch.stack(list(losses.values())).sum().backward()
    for leaf in flat(leaves, layer):
        assert leaf.grad is not None and not leaf.grad.any()


def test_feature_and_relation_train_backbone_and_adaptation_but_not_the_teacher() -> None:
    case = make_case(3, "random", images=2)
    layer = Adaptation("conv3x3", student_channels=2, teacher_channels=2)
    leaves = leaves_of(case)
    teacher = case.teacher()
    tensors = [*teacher.features, teacher.probabilities, teacher.deltas]
    for constant in tensors:
        constant.requires_grad_()
    features_only = run(case, GidConfig(), adaptation=layer, teacher=teacher, **leaves)
    (features_only["loss_gid_feature"] + features_only["loss_gid_relation"]).backward()
    assert all(constant.grad is None for constant in tensors[:-2])
    assert all(p.grad is not None and p.grad.any() for p in layer.parameters())
    assert leaves["student_features"][0].grad.any()
    assert leaves["student_logits"].grad is None


def test_weights_and_warmup_scale_the_losses() -> None:
    case = make_case(3, "random", images=2)
    plain = run(case, GidConfig())
    config = GidConfig(
        feature_weight=1e-3, relation_weight=20.0, response_cls_weight=0.3, response_reg_weight=0.0
    )
    scaled = run(case, config, warmup=0.5)
    factors = {"feature": 1.0, "relation": 0.25, "response_cls": 1.5, "response_reg": 0.0}
    for name, factor in factors.items():
        torch.testing.assert_close(scaled[f"loss_gid_{name}"], factor * plain[f"loss_gid_{name}"])


def test_losses_are_float32_under_autocast() -> None:
    """Apart from the adaptation, which runs in the precision of the student."""
    case = make_case(3, "random", images=2)
    config = GidConfig(adaptation="none")
    plain = run(case, config)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = run(case, config)
    for name, loss in plain.items():
        assert mixed[name].dtype == torch.float32
        torch.testing.assert_close(mixed[name], loss)


def test_half_precision_outputs_are_compared_in_float32() -> None:
    case = make_case(3, "random", images=2)
    half: dict[str, Any] = {
        "student_features": [tensor(level).bfloat16() for level in case.student_features],
        "student_logits": tensor(case.logits).bfloat16(),
        "student_deltas": tensor(case.student_deltas).bfloat16(),
    }
    widened: dict[str, Any] = {
        k: [x.float() for x in v] if isinstance(v, list) else v.float() for k, v in half.items()
    }
    config = GidConfig(adaptation="none")
    low, high = run(case, config, **half), run(case, config, **widened)
    for name, loss in high.items():
        assert low[name].dtype == torch.float32
        torch.testing.assert_close(low[name], loss)


def test_warmup_rises_linearly_to_one() -> None:
    assert [warmup_factor(i, 4) for i in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert warmup_factor(0, 0) == 1.0


if __name__ == "__main__":
    GOLDEN.parent.mkdir(exist_ok=True)
    GOLDEN.write_text(json.dumps(golden_losses(), indent=1) + "\n")
