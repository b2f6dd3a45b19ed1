"""Numerics: set alike by every rank, recorded, and undone."""

import json

import pytest
import torch

from configs.nodes import TeacherConfig
from stage1_dump.numerics import INTRA_OP_THREADS, fixed_numerics

CPU = torch.device("cpu")


def test_everything_that_moves_the_last_bits_is_recorded() -> None:
    teacher = TeacherConfig(batch=3, precision="bfloat16")
    with fixed_numerics(teacher, CPU) as section:
        assert torch.get_num_threads() == INTRA_OP_THREADS == section["intra_op_threads"]
    assert section["cudnn"]["deterministic"] and not section["cudnn"]["benchmark"]
    assert (section["batch"], section["precision"], section["tf32"]) == (3, "bfloat16", False)
    assert section["libraries"]["torch"] == torch.__version__
    assert "unknown" not in section["libraries"].values()
    assert json.loads(json.dumps(section)) == section


def test_settings_of_the_process_come_back() -> None:
    threads = torch.get_num_threads()
    with fixed_numerics(TeacherConfig(), CPU):
        torch.set_num_threads(INTRA_OP_THREADS)
    assert torch.get_num_threads() == threads


@pytest.mark.gpu
def test_the_manifest_says_that_tf32_was_allowed() -> None:
    with fixed_numerics(TeacherConfig(precision="tf32"), torch.device("cuda", 0)) as section:
        assert section["tf32"] is True


def test_tf32_on_a_cpu_is_refused_before_anything_is_computed() -> None:
    with (
        pytest.raises(ValueError, match="tf32 needs a CUDA device, but the teacher runs on cpu"),
        fixed_numerics(TeacherConfig(precision="tf32"), CPU),
    ):
        pass
