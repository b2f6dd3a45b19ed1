"""Programs in processes of their own, as a user starts them."""

import subprocess
from collections.abc import Sequence
from typing import Any


def stdout_of(command: Sequence[str], **options: Any) -> str:
    """Run a program to its end, which must be a good one; where it is not, its words are shown."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
