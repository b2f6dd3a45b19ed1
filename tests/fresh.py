"""Programs in processes of their own, as a user starts them, and limits of this one."""

import resource
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def stdout_of(command: Sequence[str], **options: Any) -> str:
    """Run a program to its end, which must be a good one; where it is not, its words are shown."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """What is written to beyond so many bytes fails as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
