"""Where figures are from: machine, date and command, to be kept beside them."""

from __future__ import annotations

import os
import platform
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from .versions import library_versions

# Options that say where a command writes, which its figures do not depend on.
_WRITES = ("--json", "--output")


def origin() -> dict[str, Any]:
    """Machine, date and command of this process, as JSON takes them."""
    return {
        "machine": machine(),
        "date": datetime.now(UTC).date().isoformat(),
        "command": shown_command(sys.orig_argv),
    }


def machine() -> dict[str, Any]:
    """Processor, cores, GPU if there is one, and the versions of what computes."""
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {
        **gpu,
        "cpu": _processor(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        **library_versions(),
    }


def shown_command(arguments: Sequence[str]) -> str:
    """A command as others would type it: no folders of this machine, nor where it writes.

    Args:
        arguments: of the process, the interpreter first.
    """
    told = ["python"]
    rest = iter(arguments[1:])
    for one in rest:
        if one in _WRITES:
            next(rest, None)
        elif not one.startswith(tuple(f"{name}=" for name in _WRITES)):
            told.append(Path(one).name if os.path.isabs(one) else one)
    return " ".join(told)


def _processor() -> str:
    """The processor's name where Linux tells it, else its kind, such as x86_64."""
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.machine()
