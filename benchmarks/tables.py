"""Writes the tables of the documents: of figures kept in `benchmarks/results/`, and of config keys.

    python -m benchmarks.tables          writes them
    python -m benchmarks.tables --check  names the pages that are not current, and exits with 1

A table stands between two marks, `<!-- table KIND FILE... -->` and `<!-- end -->`; what is around
them is written by hand. The kinds are those of `TABLES`, the files lie in `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from storage.example import add_example

from .result_tables import (
    accuracy_table,
    fidelity_table,
    gpu_table,
    limits_table,
    means_table,
    plain_table,
    sweep_table,
)

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_TABLE = re.compile(r"^(<!-- table (\w+)(.*?) -->\n).*?^(<!-- end -->)$", re.DOTALL | re.MULTILINE)


_OF_CONFIGS = ("node_tables", "added_keys", "refused_keys", "limited_keys")


def _of_configs(name: str) -> Callable[[Path], Iterator[str]]:
    """A table of `configs.reference`."""

    def table(_results: Path) -> Iterator[str]:
        # It imports PyTorch, which `--help` need not wait for.
        from configs import reference

        found: Iterator[str] = getattr(reference, name)()
        return found

    return table


# Kind to what gives its lines; the arguments are the folder of results and the words of the mark.
TABLES: dict[str, Callable[..., Iterator[str]]] = {
    "accuracy": accuracy_table,
    "means": means_table,
    "limits": limits_table,
    "fidelity": fidelity_table,
    "sweep": sweep_table,
    "plain": plain_table,
    "gpu": gpu_table,
    **{name: _of_configs(name) for name in _OF_CONFIGS},
}


def written(text: str, results: Path) -> str:
    """The page with its tables as the files have them.

    Raises:
        ValueError: the page asks for a table that there is not, or a file lacks what it shows.
    """

    def table(found: re.Match[str]) -> str:
        start, kind, words, end = found.groups()
        if kind not in TABLES:
            raise ValueError(f"no table {kind!r}; there are {', '.join(TABLES)}")
        try:
            lines = list(TABLES[kind](results, *words.split()))
        except (KeyError, TypeError) as error:
            raise ValueError(
                f"table {kind}{words}: expected what the command of such a table writes; "
                f"{type(error).__name__}: {error}"
            ) from error
        return start + "\n".join(lines) + "\n" + end

    return _TABLE.sub(table, text)


def main(argv: list[str] | None = None) -> int:
    """Write or check the pages; 1 where one is not current."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    add_example(parser, "--check")
    args = parser.parse_args(argv)
    try:
        changed = {
            page: after
            for page in PAGES
            if (after := written(before := page.read_text(), RESULTS)) != before
        }
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for page, after in changed.items():
        print(page.relative_to(ROOT))
        if not args.check:
            page.write_text(after)
    return 1 if args.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
