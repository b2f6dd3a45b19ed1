"""Command line: look at, check, repair, copy and compare teacher caches; without PyTorch or GPU."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from storage.errors import CacheError
from storage.example import add_example
from storage.progress import say
from storage.report import LEVELS
from storage.resources import exhausted, with_remedy
from storage.stopping import Terminated, terminable

# `storage.commands` is imported once a command runs: zarr takes time that `--help` need not wait.

_CACHE = "output/cache/r101_1x_at_800"
_EXAMPLES = {
    "info": _CACHE,
    "verify": f"{_CACHE} --level deep",
    "repair": f"{_CACHE} --dry-run",
    "drop-views": f"{_CACHE} --keep 1 --dry-run",
    "copy": f"s3://bucket/r101_1x_at_800 {_CACHE}",
    "compare": f"{_CACHE} s3://bucket/r101_1x_at_800",
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line; exits with 2 on wrong use."""
    parser = argparse.ArgumentParser(prog="python -m storage", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "info": "what a cache holds",
        "verify": "is it complete and undamaged",
        "repair": "drop damaged shards, so that the next run of the dump redoes just them",
        "drop-views": "keep the first views alone: the store that a dump of fewer views makes",
        "copy": "to another place, such as a local disk; again after an interruption",
        "compare": "same plan, same bytes, largest difference of each field",
    }
    parsers = {name: commands.add_parser(name, help=text) for name, text in helps.items()}
    add_example(parser, f"verify {_EXAMPLES['verify']}")
    for name, one in parsers.items():
        add_example(one, _EXAMPLES[name])
        one.add_argument("cache", help="local path, s3://, gs:// or az:// URL")
        if name == "compare":
            one.add_argument("other", help="the second cache")
        if name == "copy":
            one.add_argument("target", help="an empty place, or an unfinished copy of this cache")
        one.add_argument("--json", action="store_true", help="print JSON")
    for name in ("verify", "repair"):
        parsers[name].add_argument(
            "--workers", type=_count, default=os.cpu_count() or 1, metavar="N",
            help="processes (default: one a core)",
        )  # fmt: skip
    parsers["verify"].add_argument(
        "--level", choices=LEVELS, default="full",
        help="quick: sizes alone; full (default): every byte; deep: also what the bytes mean",
    )  # fmt: skip
    # What "quick" finds is damaged too, but what it does not find would be left.
    parsers["repair"].add_argument(
        "--level", choices=LEVELS[1:], default="full",
        help="how to look for damage, as for verify (default: full)",
    )  # fmt: skip
    parsers["verify"].add_argument("--expect", metavar="PLAN.json", help="what it must hold")
    parsers["drop-views"].add_argument(
        "--keep", type=_count, required=True, metavar="N", help="views that stay: 0 to N - 1"
    )
    for name in ("repair", "drop-views"):
        parsers[name].add_argument("--dry-run", action="store_true", help="name, but drop nothing")
    parsers["copy"].add_argument(
        "--transfers", type=_count, default=8, metavar="N",
        help="shards under way at once (default: 8; of an object store, 40 MB of memory each)",
    )  # fmt: skip
    return parser.parse_args(arguments)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a number of 1 or more")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code.

    Returns:
        0 success, 1 failure, 2 wrong use, 130 Ctrl-C, 143 SIGTERM, 129 SIGHUP.
    """
    args = vars(parse(arguments))
    # Claims are given back and workers end, whichever signal it was.
    with terminable():
        try:
            from storage import commands

            run = getattr(commands, f"run_{args.pop('command').replace('-', '_')}")
            return int(run(args.pop("cache"), as_json=args.pop("json"), **args))
        except (CacheError, ValueError, OSError, ImportError) as error:
            say(f"error: {with_remedy(error, str(error))}")
            return 1
        except (MemoryError, RuntimeError) as error:
            if not exhausted(error):
                raise
            say(f"error: {with_remedy(error, str(error))}")
            return 1
        except Terminated as error:
            say(f"interrupted by {error}")
            return 128 + error.number
        except KeyboardInterrupt:
            say("interrupted")
            return 128 + signal.SIGINT


if __name__ == "__main__":
    sys.exit(main())
