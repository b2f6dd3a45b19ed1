"""The example that every command's `--help` ends with."""

from __future__ import annotations

import argparse


def add_example(parser: argparse.ArgumentParser, arguments: str) -> None:
    """End a parser's help with a command line to copy.

    Args:
        parser: of a command, or of one of its subcommands.
        arguments: what follows the command's name.
    """
    # argparse would wrap it, and a wrapped command line is none.
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = f"example:\n  {parser.prog} {arguments}"
