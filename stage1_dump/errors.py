"""The error that the command line turns into one line, beside those for wrong input."""

from __future__ import annotations


class DumpError(RuntimeError):
    """The dump cannot go on; the message says what happened and what to do."""
