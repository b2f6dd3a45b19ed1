"""Arithmetic of a teacher: TF32, autocast and cuDNN, set and undone in one place."""

import pytest
import torch

from detectors.arithmetic import arithmetic

CPU = torch.device("cpu")


def tf32_allowed() -> bool:
    return torch.backends.cudnn.allow_tf32 or torch.get_float32_matmul_precision() != "highest"


def test_tf32_is_off_inside_and_as_it_was_outside() -> None:
    assert torch.backends.cudnn.allow_tf32, "PyTorch's default, which this is about, has changed"
    torch.set_float32_matmul_precision("high")
    try:
        with arithmetic("float32", CPU):
            assert not tf32_allowed()
        assert torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_cudnn_takes_algorithms_that_can_be_repeated_and_then_those_it_took() -> None:
    cudnn = torch.backends.cudnn
    before = (cudnn.benchmark, cudnn.deterministic)
    cudnn.benchmark, cudnn.deterministic = True, False
    try:
        with arithmetic("float32", CPU):
            assert (cudnn.benchmark, cudnn.deterministic) == (False, True)
        assert (cudnn.benchmark, cudnn.deterministic) == (True, False)
    finally:
        cudnn.benchmark, cudnn.deterministic = before


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_an_outer_autocast_changes_nothing(precision: str) -> None:
    weight = torch.ones(4, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16), arithmetic(precision, CPU):
        assert (weight @ weight).dtype == getattr(torch, precision)


def test_tf32_is_allowed_where_it_is_asked_for() -> None:
    with arithmetic("tf32", torch.device("cuda", 0)):
        assert torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "high"
