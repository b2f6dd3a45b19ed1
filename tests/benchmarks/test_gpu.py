"""The run on a GPU: its parts are commands that there are, and only two of them see no GPU."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from benchmarks import gpu


def test_each_part_is_a_command_that_takes_its_arguments(tmp_path: Path) -> None:
    for part in gpu.parts(tmp_path):
        module, *arguments = part.command
        if module != "pytest":
            with pytest.raises(SystemExit) as ended:  # `--help` comes after what is wrong
                importlib.import_module(module).main([*arguments, "--json", "rows", "--help"])
            assert ended.value.code == 0


def test_a_pretended_gpu_is_not_beside_a_real_one(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = {}

    def shown(
        command: list[str], timeout_sec: float, variables: dict[str, str]
    ) -> tuple[int, list[str]]:
        seen[command[2]] = variables
        return 0, []

    monkeypatch.setattr(gpu, "_shown", shown)
    for part in gpu.parts(Path()):
        gpu.run(part, 1.0)
    hidden = {name for name, variables in seen.items() if variables}
    assert hidden == {"benchmarks.transfers", "benchmarks.loader"}
    assert seen["benchmarks.transfers"] == {"CUDA_VISIBLE_DEVICES": ""}
