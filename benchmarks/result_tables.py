"""Tables of the figures that are kept in `benchmarks/results/`, a function for each kind.

Every file says of its figures on which machine, when and by which command they were measured;
`entered` says of those that no command wrote where they were taken from.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from configs.markdown import markdown_table

# Students of `benchmarks.accuracy` that no preset names.
_STUDENTS = {
    "ground truth": "student, ground truth alone",
    "live": "student, teacher live in every step",
}
_FAMILIES = {"retinanet": "RetinaNet", "fcos": "FCOS", "faster_rcnn": "Faster R-CNN"}
# What `benchmarks.fidelity` says of a cache, and how its figures are written.
_FIDELITY = {
    "GIs matched": "{:.3f}",
    "error of a loss": "{:.2%}",
    "cosine of the gradients": "{:.5f}",
}


def gpu_table(results: Path) -> Iterator[str]:
    """The runs of `benchmarks.gpu`, one table a GPU model."""
    for path in sorted(results.glob("gpu_*.json")):
        run = json.loads(path.read_text())
        yield from _source(run)
        rows = chain.from_iterable(map(_part_rows, run["parts"]))
        yield from markdown_table(["part", "what", "measured", "limit", ""], rows)
        yield ""


def accuracy_table(results: Path, name: str) -> Iterator[str]:
    """AP by seed, means, and what sets the students apart, of `benchmarks.accuracy`.

    Args:
        results: the folder of the files.
        name: of a file; of one that holds several sets with a colon and the set.
    """
    content, found = _set(results, name)
    seeds = list(next(iter(found["students"].values())))
    others = {
        other: title
        for other, title in (("ground truth", "ground truth alone"), ("live", "the live teacher"))
        if any(key.endswith(f" - {other}") for key in found.get("differences", ()))
    }
    yield from _source(content)
    columns = [f"over {title}, 95% interval" for title in others.values()]
    header = [_FAMILIES[content["family"]], *(f"seed {one}" for one in seeds), "mean", *columns]
    blank = [""] * len(columns)
    rows = [["teacher", *[""] * len(seeds), f"{found['teacher']:.1f}", *blank]]
    for student, values in found["students"].items():
        cells = [f"{value:.1f}" for value in (*values.values(), _mean(values))]
        apart = [_difference(found["differences"].get(f"{student} - {one}")) for one in others]
        rows.append([_student(student), *cells, *apart])
    yield from markdown_table(header, rows)


def means_table(results: Path, *names: str) -> Iterator[str]:
    """Mean AP of each kind of student, a column for every set of `benchmarks.accuracy`."""
    sets = [_set(results, name)[1] for name in names]
    rows = [["teacher", *(f"{one['teacher']:.1f}" for one in sets)]]
    for student in sets[0]["students"]:
        means = (_mean(one["students"][student]) for one in sets)
        rows.append([_student(student), *(f"{mean:.1f}" for mean in means)])
    yield from markdown_table(["", *(one["title"] for one in sets)], rows)


def limits_table(results: Path, *names: str) -> Iterator[str]:
    """Rows of benchmarks with their limits; those on the fidelity of caches have their own."""
    contents = [_read(results, name) for name in names]
    for content in contents:
        yield from _source(content)
    rows = (row for content in contents for row in content["rows"])
    yield from markdown_table(
        ["what", "measured", "limit", ""],
        (
            [row["name"], *_against_limit(row)]
            for row in rows
            if row["name"].rpartition(": ")[2] not in _FIDELITY
        ),
    )


def fidelity_table(results: Path, *names: str) -> Iterator[str]:
    """What `benchmarks.fidelity` says of every cache, a row for each, with the limits."""
    contents = [_read(results, name) for name in names]
    for content in contents:
        yield from _source(content)
    found: dict[str, dict[str, str]] = {}
    for row in (row for content in contents for row in content["rows"]):
        subject, _, what = row["name"].rpartition(": ")
        if what in _FIDELITY:
            found.setdefault(subject, {})[what] = _fidelity_cell(_FIDELITY[what], row)
    yield from markdown_table(
        ["family, trained on, preset, method", *_FIDELITY],
        ([subject, *(one.get(what, "") for what in _FIDELITY)] for subject, one in found.items()),
    )


def sweep_table(results: Path, name: str, dataset: str = "") -> Iterator[str]:
    """The table of a `sweep.json`; `dataset`: which, where it compares on several."""
    content = _read(results, name)
    rows = {row: one["results"] for row, one in content["rows"].items()}
    known = list(next(iter(rows.values())))
    if not dataset and len(known) != 1:
        raise ValueError(f"{name}: name one of its datasets behind it: {', '.join(known)}")
    yield from _source(content)
    several = any(len(one[dataset or known[0]]["ap"]) > 1 for one in rows.values())
    extra = [f"over {content['first_row']}, 95% interval", "spread"] if several else []
    lines = []
    for row, by_dataset in rows.items():
        one = by_dataset[dataset or known[0]]
        cells = [_number(one["mean"]), _number(one["means"].get("AP50"))]
        apart = [_difference(_interval(one["difference"])), _number(one["spread"])]
        lines.append([row, str(len(one["ap"])), *cells, *(apart if several else [])])
    yield from markdown_table(["", "seeds", "AP", "AP50", *extra], lines)


def plain_table(results: Path, name: str) -> Iterator[str]:
    """Columns and rows as the file has them."""
    content = _read(results, name)
    yield from _source(content)
    yield from markdown_table(content["columns"], content["rows"])


def _read(results: Path, name: str) -> dict[str, Any]:
    path = results / name
    if not path.is_file():
        raise ValueError(f"no file {name} in benchmarks/results")
    content = json.loads(path.read_text())
    if not isinstance(content, dict):
        raise ValueError(f"{name}: expected an object that says machine, date and command")
    return content


def _set(results: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A file of `benchmarks.accuracy`, and the set of it that is meant, with its title."""
    name, _, wanted = name.partition(":")
    content = _read(results, name)
    sets = content["sets"]
    if not wanted and len(sets) == 1:
        wanted = next(iter(sets))
    if wanted not in sets:
        ways = ", ".join(f"{name}:{one}" for one in sets)
        raise ValueError(f"{name}: expected one of its sets behind a colon: {ways}")
    return content, {"title": f"{wanted} set", **sets[wanted]}


def _source(content: dict[str, Any]) -> Iterator[str]:
    """A line: machine, date and command, as far as they are known."""
    told = [in_words(content["machine"])] if "machine" in content else []
    told += [content["date"]] if "date" in content else []
    told += [f"`{content['command']}`"] if "command" in content else []
    sentences = ["; ".join(told)] if told else []
    sentences += [f"Entered {content['entered']}"] if "entered" in content else []
    if sentences:
        yield from (". ".join(sentences) + ".", "")


def in_words(machine: str | dict[str, Any]) -> str:
    """A machine in words; figures that were entered say it in words already."""
    if isinstance(machine, str):
        return machine
    name = machine.get("gpu") or machine["cpu"]
    return (
        f"{name}, {machine['cpus']} CPU cores; PyTorch {machine['torch']}, "
        f"torchvision {machine['torchvision']}, Python {machine['python']}"
    )


def _part_rows(part: dict[str, Any]) -> Iterator[list[str]]:
    if not part["rows"]:
        last = (part["output"] or ["no output"])[-1].strip("= ")
        yield [part["name"], last, "", "", "" if part["exit_code"] == 0 else "failed"]
    for row in part["rows"]:
        yield [part["name"], row["name"], *_against_limit(row)]


def _against_limit(row: dict[str, Any]) -> list[str]:
    """What was measured, the limit, and whether it was missed; of several runs least and most."""
    values = row["value"] if isinstance(row["value"], list) else [row["value"]]
    is_limited = math.isfinite(row["limit"])
    bound = f"{'at least ' if row['at_least'] else ''}{row['limit']:g}" if is_limited else ""
    measured = " to ".join(f"{value:,.3g}" if value < 1e3 else f"{value:,.0f}" for value in values)
    return [measured, bound, "" if row["reached"] else "not reached"]


def _fidelity_cell(form: str, row: dict[str, Any]) -> str:
    limit = f"{row['limit'] * 100:g}%" if "%" in form else f"{row['limit']:g}"
    bound = f" ({limit})" if math.isfinite(row["limit"]) else ""
    return form.format(row["value"]) + bound + ("" if row["reached"] else ", not reached")


def _student(name: str) -> str:
    preset, *levels = name.split()
    kept = f", levels {' '.join(levels)}" if levels else ""
    return _STUDENTS.get(name, f"student, cache in preset `{preset}`{kept}")


def _mean(values: dict[str, float]) -> float:
    return statistics.mean(values.values())


def _interval(difference: dict[str, Any] | None) -> dict[str, Any] | None:
    """A difference of a sweep as `benchmarks.accuracy` has them."""
    if difference is None:
        return None
    mean, half = difference["mean"], difference["half_width"]
    return {"mean": mean, "interval": None if half is None else (mean - half, mean + half)}


def _difference(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    if found["interval"] is None:
        return f"{found['mean']:+.1f}"
    low, high = found["interval"]
    return f"{found['mean']:+.1f} ({low:+.1f} to {high:+.1f})"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
