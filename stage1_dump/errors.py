"""The error of a dump that runs out of means."""

from __future__ import annotations


class DumpError(OSError):
    """This machine cannot go on with the dump; the message says what to change."""
