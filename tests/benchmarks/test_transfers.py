"""What a distilling step and a dump wait for and launch, counted on a pretended GPU."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from benchmarks.families import FAMILIES
from benchmarks.methods import METHODS
from tests.fresh import stdout_of

ROOT = Path(__file__).parent.parent.parent

# Tensors that the pretended GPU must handle as a real one does; its hooks stay in their process.
COUNTING = """
import torch
from benchmarks.pretended_gpu import GPU, PretendedGpu
with PretendedGpu() as gpu:
    x = torch.arange(6.0).to(GPU)            # a wait: blocking copy
    y = torch.arange(6).to(GPU, non_blocking=True)
    assert x.device.type == "cuda" and not gpu.waits.keys() - {("copy to the GPU", "elsewhere")}
    (x + 1).view(2, 3)                       # a launch, and a view
    before = gpu.launches.total()
    x.view(2, 3)[0], torch.empty(3, device=GPU)
    assert gpu.launches.total() == before
    x[x > 2], x.nonzero(), x[0].item(), x.tolist(), x.cpu(), x[torch.tensor([0])]
    x[y], x[:2].fill_(1.0), x.masked_fill_(x > 1, 0.0), x.repeat_interleave(y, output_size=15)
    torch.cuda.current_stream(y.device).record_event().synchronize()
    try:
        x + torch.ones(6)
    except RuntimeError as error:
        assert "a tensor of the host beside one of the GPU" in str(error)
    else:
        raise AssertionError
    print(sorted((kind, count) for (kind, _), count in gpu.waits.items()))
"""


def test_waits_are_told_from_what_the_gpu_does_alone() -> None:
    assert stdout_of([sys.executable, "-c", COUNTING], cwd=ROOT).strip() == str(
        [
            ("_local_scalar_dense", 1),
            ("copy to the GPU", 1),
            ("copy to the host", 1),
            ("event", 1),
            ("index from the host", 1),
            ("mask as an index", 1),
            ("nonzero", 1),
            ("tolist", 1),
        ]
    )


@pytest.mark.parametrize(
    ("family", "methods"),
    [("retinanet", METHODS), ("fcos", ("gid",)), ("faster_rcnn", ("gid",))],
)
def test_a_step_of_mixed_sizes_keeps_the_limits(
    family: str, methods: Sequence[str], tmp_path: Path
) -> None:
    rows = tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks.transfers", "--images", "2", "--mixed-only"]
    command += ["--presets", "balanced", "--json", str(rows), "--families", family]
    command += ["--methods", *methods]
    stdout_of(command, cwd=ROOT)
    found = json.loads(rows.read_text())["rows"]
    for method, waits, launches in zip(methods, found[::2], found[1::2], strict=True):
        # General instances and pseudo objects are waited for, once.
        assert (waits["value"] > 0) == (method in ("gid", "pseudo")), method
        assert waits["value"] <= waits["limit"] == 8
        assert 50 < launches["value"] <= launches["limit"]


def test_a_batch_of_a_dump_keeps_the_limits(
    tmp_path: Path,
) -> None:
    rows = tmp_path / "rows.json"
    command = [sys.executable, "-m", "benchmarks.transfers", "--dump", "--images", "1", "3"]
    command += ["--json", str(rows), "--families", *FAMILIES]
    stdout_of(command, cwd=ROOT)
    values = {row["name"]: row["value"] for row in json.loads(rows.read_text())["rows"]}
    for family in FAMILIES:
        alone, three = (values[f"waits, {family}, {n} images of a dump"] for n in (1, 3))
        assert three - alone == 2 * (7 if family == "faster_rcnn" else 1)
