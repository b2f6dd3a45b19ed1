"""The table of a sweep: rows, their means over seeds, and what sets them apart from the first."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from configs.markdown import markdown_table
from detectors.origin import origin
from storage.whole import write_whole

from ..pages import OF_CLASS, class_table, number
from .plan import Run
from .runs_file import Row
from .statistics import Difference, paired_difference, spread

_OTHERS = ("AP50", "AP75")


@dataclass(frozen=True, kw_only=True)
class RowSummary:
    """One row on one dataset.

    Attributes:
        ap: AP by seed, in percent, of the runs that are finished.
        spread: standard deviation over seeds.
        difference: to the first row; None for the first row itself, and without common seeds.
        means: of every other metric over seeds, such as `AP50` and `AP-<class>`.
    """

    ap: Mapping[int, float]
    spread: float | None
    difference: Difference | None
    means: Mapping[str, float]

    @property
    def mean(self) -> float | None:
        """Mean AP over seeds."""
        return statistics.mean(self.ap.values()) if self.ap else None


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What a sweep has found so far.

    Attributes:
        config, runs_file: what it was started with.
        rows: of the runs file.
        runs: all, in the order of training.
        states: `finished`, `failed`, `running` or `waiting`, of each run.
        failures: the last line of those that failed.
        tables: dataset to row's name to its summary, in the file's order.
    """

    config: str
    runs_file: str
    rows: Sequence[Row]
    runs: Sequence[Run]
    states: Mapping[Run, str]
    failures: Mapping[Run, str]
    tables: Mapping[str, Mapping[str, RowSummary]]

    @property
    def unfinished(self) -> list[str]:
        """A line for each run that has no result."""
        return [
            f"{run.name}: {state}" + (f": {self.failures[run]}" if run in self.failures else "")
            for run, state in self.states.items()
            if state != "finished"
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything, for scripts."""
        return {
            **origin(),
            "config": self.config,
            "runs_file": self.runs_file,
            "first_row": self.rows[0].name,
            "finished": not self.unfinished,
            "rows": {row.name: self._row(row) for row in self.rows},
        }

    def _row(self, row: Row) -> dict[str, Any]:
        own = [run for run in self.runs if run.row == row.name]
        return {
            "overrides": dict(row.overrides),
            "runs": [
                {
                    "seed": run.seed,
                    "state": self.states[run],
                    "error": self.failures.get(run),
                    "folder": str(run.folder),
                    "config": run.digest,
                }
                for run in own
            ],
            "results": {
                dataset: {"mean": rows[row.name].mean, **asdict(rows[row.name])}
                for dataset, rows in self.tables.items()
            },
        }

    def markdown(self) -> str:
        """The tables as a page of Markdown."""
        lines = [f"# {Path(self.runs_file).stem}", "", *self.intro(), ""]
        for dataset in self.tables:
            lines += [f"## {dataset}", "", *markdown_table(*self.main_table(dataset)), ""]
            lines += [
                "AP by class, mean over seeds:",
                "",
                *markdown_table(*self.class_table(dataset)),
            ]
            lines.append("")
        lines += [f"- {line}" for line in self.unfinished]
        return "\n".join(lines).rstrip() + "\n"

    def intro(self) -> list[str]:
        """What the tables show, in sentences."""
        seeds = max(run.seed for run in self.runs)
        found = [
            f"Config {self.config}, rows of {self.runs_file}, seeds 1 to {seeds}. AP in percent; "
            f"the differences are those to the row `{self.rows[0].name}`, paired by seed, with "
            "their 95% intervals (Student's t)."
        ]
        if self.unfinished:
            found.append(f"{len(self.unfinished)} of {len(self.runs)} runs have no result (yet).")
        return found

    def main_table(self, dataset: str) -> tuple[list[str], list[list[str]]]:
        """Header and cells: a row for every row."""
        header = ["row", "AP", "spread", "difference", "95% interval", "seeds", *_OTHERS]
        return header, [
            [name, *_cells(row)] for name, row in self.tables[dataset].items()
        ]  # fmt: skip

    def class_table(self, dataset: str) -> tuple[list[str], list[list[str]]]:
        """Header and cells: a row for every class, a column for every row."""
        return class_table({name: row.means for name, row in self.tables[dataset].items()})


def summarise(
    config: str,
    runs_file: str,
    rows: Sequence[Row],
    runs: Sequence[Run],
    state: Callable[[Run], str],
    failures: Mapping[Run, str],
) -> Summary:
    """Put together what the runs have left in their folders; see `Summary` for the arguments."""
    states = {run: state(run) for run in runs}
    found: dict[str, dict[str, dict[int, Mapping[str, float]]]] = {
        dataset: {row.name: {} for row in rows} for dataset in runs[0].cfg.DATASETS.TEST
    }
    for run in runs:
        record = run.record() if states[run] == "finished" else None
        for dataset, results in ((record.results if record else None) or {}).items():
            found[dataset][run.row][run.seed] = results
    return Summary(
        config=config,
        runs_file=runs_file,
        rows=rows,
        runs=runs,
        states=states,
        failures=dict(failures),
        tables={dataset: _table(by_row) for dataset, by_row in found.items()},
    )


def write_json(summary: Summary, path: Path) -> None:
    """Write the figures, whole or not at all."""
    write_whole(path, json.dumps(summary.to_json(), indent=1) + "\n")


def _table(by_row: dict[str, dict[int, Mapping[str, float]]]) -> dict[str, RowSummary]:
    first, *_ = by_row
    everything = [one for by_seed in by_row.values() for one in by_seed.values()]
    names = list(dict.fromkeys(name for one in everything for name in one))
    ap = {
        name: {seed: results["AP"] for seed, results in sorted(by_seed.items())}
        for name, by_seed in by_row.items()
    }
    return {
        name: RowSummary(
            ap=values,
            spread=spread(values),
            difference=None if name == first else paired_difference(values, ap[first]),
            means=_means(list(by_row[name].values()), names),
        )
        for name, values in ap.items()
    }


def _means(results: list[Mapping[str, float]], names: Iterable[str]) -> dict[str, float]:
    """Means of what is not the AP itself, of the metrics that any run has.

    A run that detected nothing at all tells of no class: its AP was 0 in each of them.
    """
    found = {}
    for name in names:
        values = [one.get(name, 0.0 if _is_empty(one) else None) for one in results]
        known = [value for value in values if value is not None]
        if known and name != "AP":
            found[name] = statistics.mean(known)
    return found


def _is_empty(results: Mapping[str, float]) -> bool:
    return results["AP"] == 0 and not any(name.startswith(OF_CLASS) for name in results)


def _cells(row: RowSummary) -> Iterator[str]:
    yield number(row.mean)
    yield number(row.spread)
    other = row.difference
    yield "-" if other is None else f"{other.mean:+.2f}"
    if other is None or other.half_width is None:
        yield "-"
    else:
        yield f"{other.mean - other.half_width:+.2f} to {other.mean + other.half_width:+.2f}"
    yield str(len(row.ap))
    for name in _OTHERS:
        yield number(row.means.get(name))
