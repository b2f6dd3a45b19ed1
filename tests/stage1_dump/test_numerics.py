"""Numerics: set alike by every rank, recorded, and undone."""

import json

import torch

from configs.schema import TeacherConfig
from stage1_dump.numerics import INTRA_OP_THREADS, autocast, fixed_numerics

CPU = torch.device("cpu")


def test_everything_that_moves_the_last_bits_is_recorded() -> None:
    teacher = TeacherConfig(batch=3, precision="bfloat16")
    with fixed_numerics(teacher, CPU) as section:
        assert torch.get_num_threads() == INTRA_OP_THREADS == section["intra_op_threads"]
        assert not torch.backends.cudnn.allow_tf32 and torch.backends.cudnn.deterministic
        assert torch.get_float32_matmul_precision() == "highest"
    assert (section["batch"], section["precision"]) == (3, "bfloat16")
    assert section["libraries"]["torch"] == torch.__version__
    assert "unknown" not in section["libraries"].values()
    assert json.loads(json.dumps(section)) == section


def test_settings_of_the_process_come_back() -> None:
    torch.set_float32_matmul_precision("high")
    try:
        with fixed_numerics(TeacherConfig(), CPU):
            pass
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_only_half_precisions_are_cast() -> None:
    weight = torch.ones(4, 4)
    with autocast("float32", CPU):
        assert (weight @ weight).dtype == torch.float32
    with autocast("bfloat16", CPU):
        assert (weight @ weight).dtype == torch.bfloat16
