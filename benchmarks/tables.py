"""Writes the tables of the documents: of figures kept in `benchmarks/results/`, and of config keys.

    python -m benchmarks.tables          writes them
    python -m benchmarks.tables --check  names the pages that are not current, and exits with 1

A table stands between two marks, `<!-- table NAME -->` and `<!-- end -->`; what is around them is
written by hand.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from storage.example import add_example

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_TABLE = re.compile(r"^(<!-- table (\w+) -->\n).*?^(<!-- end -->)$", re.DOTALL | re.MULTILINE)


def gpu_table(results: Path) -> Iterator[str]:
    """The runs of `benchmarks.gpu`, one table a GPU model."""
    for path in sorted(results.glob("gpu_*.json")):
        run = json.loads(path.read_text())
        machine = run["machine"]
        yield (
            f"{machine['gpu']}, {machine['cpus']} CPU cores; PyTorch {machine['torch']}, "
            f"torchvision {machine['torchvision']}, Python {machine['python']}; {run['date']}. "
            f"Its parts took {sum(part['seconds'] for part in run['parts']):.0f} s."
        )
        yield ""
        yield "| part | what | measured | limit | |"
        yield "|---|---|---|---|---|"
        for part in run["parts"]:
            yield from _rows(part)
        yield ""


def _rows(part: dict[str, Any]) -> Iterator[str]:
    if not part["rows"]:
        last = (part["output"] or ["no output"])[-1].strip("= ")
        yield f"| {part['name']} | {last} | | | {'' if part['exit_code'] == 0 else 'failed'} |"
    for row in part["rows"]:
        bound = f"{'at least ' if row['at_least'] else ''}{row['limit']:g}"
        verdict = "" if row["reached"] else "not reached"
        yield f"| {part['name']} | {row['name']} | {row['value']:.3g} | {bound} | {verdict} |"


def _of_configs(name: str) -> Callable[[Path], Iterator[str]]:
    """A table of `configs.reference`."""

    def table(_results: Path) -> Iterator[str]:
        # It imports PyTorch, which `--help` need not wait for.
        from configs import reference

        found: Iterator[str] = getattr(reference, name)()
        return found

    return table


TABLES: dict[str, Callable[[Path], Iterator[str]]] = {
    "gpu": gpu_table,
    **{
        name: _of_configs(name)
        for name in ("node_tables", "added_keys", "refused_keys", "limited_keys")
    },
}


def written(text: str, results: Path) -> str:
    """The page with its tables as the files have them.

    Raises:
        ValueError: the page asks for a table that there is not.
    """

    def table(found: re.Match[str]) -> str:
        if found[2] not in TABLES:
            raise ValueError(f"no table {found[2]!r}; there are {', '.join(TABLES)}")
        return found[1] + "\n".join(TABLES[found[2]](results)) + "\n" + found[3]

    return _TABLE.sub(table, text)


def main(argv: list[str] | None = None) -> int:
    """Write or check the pages; 1 where one is not current."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tables", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    add_example(parser, "--check")
    args = parser.parse_args(argv)
    changed = {
        page: after
        for page in PAGES
        if (after := written(before := page.read_text(), RESULTS)) != before
    }
    for page, after in changed.items():
        print(page.relative_to(ROOT))
        if not args.check:
            page.write_text(after)
    return 1 if args.check and changed else 0


if __name__ == "__main__":
    sys.exit(main())
