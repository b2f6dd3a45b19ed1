"""A training step: accumulation, mixed precision, and errors that name their images."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from detectron2.config import get_cfg
from detectron2.solver.build import maybe_add_gradient_clipping
from detectron2.utils.events import EventStorage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from detectors.loop import AMP_DTYPES, Loop

Batch = list[dict[str, Any]]


class Model(nn.Module):
    """Losses that are means over the images; remembers the type that its layer computed in."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.layer = nn.Linear(3, 2)
        self.dtype: torch.dtype | None = None

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        out = self.layer(torch.stack([item["x"] for item in batch]))
        self.dtype = out.dtype
        return {
            "loss_a": out[:, 0].float().square().mean() / 4,
            "loss_b": out[:, 1].float().mean() / 4,
        }


def batches(count: int, size: int = 4, scale: float = 1.0) -> list[Batch]:
    generator = torch.Generator().manual_seed(2)
    return [
        [
            {"x": torch.randn(3, generator=generator) * scale, "image_id": 10 * b + i}
            for i in range(size)
        ]
        for b in range(count)
    ]


def run(
    model: nn.Module,
    data: Any,
    steps: int,
    *,
    clip: float = 0.0,
    kind: str = "norm",
    optimizer: torch.optim.Optimizer | None = None,
    **changes: Any,
) -> Loop:
    """Run steps, of SGD without momentum by default, logging into a storage of the loop's own."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1)
    if clip:
        cfg = get_cfg()
        cfg.SOLVER.CLIP_GRADIENTS.ENABLED = True
        cfg.SOLVER.CLIP_GRADIENTS.CLIP_TYPE = kind
        cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE = clip
        optimizer = maybe_add_gradient_clipping(cfg, optimizer)
    loop = Loop(model, data, optimizer, device=torch.device("cpu"), **changes)
    with EventStorage() as loop.storage:
        for loop.iter in range(steps):
            loop.run_step()
            loop.storage.step()
    return loop


@pytest.mark.parametrize("clip", [0.0, 0.05])
def test_a_step_in_parts_is_the_step_of_the_whole_batch(clip: float) -> None:
    whole, parts = Model(), Model()
    one = run(whole, batches(5), 5, clip=clip)
    other = run(parts, batches(5), 5, clip=clip, accumulate=2)
    torch.testing.assert_close(parts.layer.weight, whole.layer.weight)
    assert not torch.equal(whole.layer.weight, Model().layer.weight)
    for name in ("loss_a", "loss_b", "total_loss"):
        values = [[v for v, _ in loop.storage.history(name).values()] for loop in (one, other)]
        assert values[1] == pytest.approx(values[0], rel=1e-5)


def test_a_term_that_a_part_of_a_step_lacks_counts_as_zero_in_it() -> None:
    class Sparse(Model):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            losses = super().forward(batch)
            if batch[0]["image_id"] % 10 == 0:
                del losses["loss_b"]
            return losses

    both = run(Sparse(), batches(1), 1, accumulate=2).storage.latest()
    second = run(Model(), [batches(1)[0][2:]], 1).storage.latest()
    assert both["loss_b"][0] == pytest.approx(second["loss_b"][0] / 2)


def test_a_clipped_step_is_no_longer_than_the_limit() -> None:
    model = Model()
    before = model.layer.weight.detach().clone()
    run(model, batches(1), 1, clip=1e-3, accumulate=2)
    assert (model.layer.weight - before).norm().item() == pytest.approx(0.1 * 1e-3, rel=1e-3)


@pytest.mark.parametrize("half", AMP_DTYPES.values(), ids=AMP_DTYPES)
def test_mixed_precision_computes_in_half_and_keeps_weights_in_full(half: torch.dtype) -> None:
    model = Model()
    # Small enough for a loss scaled by 2^16.
    data = batches(2, scale=0.3)
    loop = run(model, data, 2, mixed_precision=half)
    assert model.dtype == half
    assert loop.grad_scaler.is_enabled() == (half == torch.float16)
    assert model.layer.weight.dtype == torch.float32
    whole = Model()
    run(whole, data, 2)
    assert not torch.equal(whole.layer.weight, Model().layer.weight)
    torch.testing.assert_close(model.layer.weight, whole.layer.weight, rtol=0.05, atol=0.01)


@pytest.mark.parametrize("kind", ["value", "norm"])
@pytest.mark.parametrize("fused", [True, False])
def test_gradients_are_clipped_unscaled(fused: bool, kind: str) -> None:
    """A fused optimizer unscales within its step, behind the clipping that is built into it."""

    def averages(half: torch.dtype | None) -> Tensor:
        model = Model()
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=fused)
        data = batches(3, scale=0.3)
        loop = run(model, data, 3, clip=0.1, kind=kind, optimizer=optimizer, mixed_precision=half)
        assert half is None or loop.grad_scaler.get_scale() == 2**16
        return optimizer.state[model.layer.weight]["exp_avg"]

    torch.testing.assert_close(averages(torch.float16), averages(None), rtol=0.02, atol=1e-4)


def test_a_step_whose_scaled_gradients_overflow_is_left_out() -> None:
    model = Model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    data = batches(1, scale=100.0)
    run(model, data, 1, clip=0.3, optimizer=optimizer, mixed_precision=torch.float16)
    assert torch.equal(model.layer.weight, Model().layer.weight)


def test_a_loss_that_is_not_finite_names_iteration_term_and_images() -> None:
    data, model = batches(3), Model()
    data[2][3]["x"] = torch.full((3,), float("nan"))
    before: list[Tensor] = []

    class Watched(Model):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            before.append(self.layer.weight.detach().clone())
            return super().forward(batch)

    model = Watched()
    with pytest.raises(FloatingPointError) as caught:
        run(model, data, 3, accumulate=2)
    message = str(caught.value)
    assert "iteration 2, images 22, 23: loss_a is nan, loss_b is nan" in message
    # The broken step was not taken.
    assert torch.equal(model.layer.weight, before[-1])


def test_an_error_of_the_forward_pass_names_iteration_and_images_too() -> None:
    class Broken(Model):
        def forward(self, batch: Batch) -> dict[str, Tensor]:
            raise FloatingPointError("the student's class logits hold NaN or infinity")

    with pytest.raises(FloatingPointError, match="iteration 0, images 0, 1, 2, 3: the student's"):
        run(Broken(), batches(1), 1)


def test_a_batch_that_cannot_be_read_is_told_before_the_error_is_raised() -> None:
    def data() -> Iterator[Batch]:
        yield from batches(2)
        raise OSError("shard 3 is gone")

    told = []
    model = Model()
    with pytest.raises(OSError, match="shard 3 is gone"):
        run(model, data(), 3, on_stop=lambda: told.append(model.layer.weight.clone()) or "")
    trained = Model()
    run(trained, batches(2), 2)
    assert [torch.equal(weight, trained.layer.weight) for weight in told] == [True]


@pytest.fixture
def one_rank(tmp_path: Path) -> Iterator[None]:
    """A process group of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("one_rank")
def test_weights_that_a_step_of_several_ranks_leaves_out_are_named() -> None:
    model = Model()
    model.unused = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"do not depend on unused\.weight, unused\.bias, which"):
        run(DistributedDataParallel(model), batches(2), 2)
