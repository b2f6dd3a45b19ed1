"""What a check of a store found: problems, each one line that says what, where and what to do."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from storage.errors import UnreadableError

LEVELS = ("quick", "full", "deep")

KINDS: Mapping[str, str] = {
    "damaged": "bytes are not those that were written",
    "truncated": "an object is shorter than it was written",
    "swapped": "an object holds the bytes of another one",
    "missing": "a shard is not committed, or an object is absent",
    "uncommitted": "objects without a commit: a dump is at work, or was interrupted",
    "foreign": "an object or a commit that is no part of this store",
    "version": "written in another version of the format",
    "unfinished": "the store was growing when its writer stopped",
    "unreadable": "what lies there may not be read: permissions",
    "invalid": "a record holds values that make no sense",
    "unexpected": "the store is not the one that was asked for",
}


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One problem.

    Attributes:
        kind: a key of `KINDS`.
        where: key, shard or field of an identity that it is about.
        message: names the store and the place, says what is wrong and what to do about it.
        shard: "bucket/number" of the shard, or "".
        array: name of the array, or "".
        spoils: whether the shard is committed but cannot be used: `repair` drops it.
        in_the_way: whether what lies at `where` keeps a part of the store from being written, and
            is no part of it: `repair` removes it.
    """

    kind: str
    where: str
    message: str
    shard: str = ""
    array: str = ""
    spoils: bool = False
    in_the_way: bool = False

    def __str__(self) -> str:
        return f"{self.kind}: {self.message}"


@dataclass(frozen=True, kw_only=True)
class Report:
    """Result of `verify`.

    Attributes:
        store: its location. level: "quick", "full" or "deep".
        problems: everything that is wrong; empty if all is well.
        records, shards: how many the store's plan has; 0 if its metadata cannot be read.
        committed: how many shards are committed.
        compared: how many records were compared: those of committed shards.
        excluded: images that records may lack.
        num_bytes: bytes that were read and compared.
    """

    store: str
    level: str
    problems: tuple[Problem, ...] = field(default=())
    records: int = 0
    shards: int = 0
    committed: int = 0
    compared: int = 0
    excluded: int = 0
    num_bytes: int = 0

    @property
    def ok(self) -> bool:
        """Whether the store is complete and undamaged, as far as the level looks."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {**asdict(self), "problems": [asdict(one) for one in self.problems], "ok": self.ok}

    def lines(self) -> list[str]:
        """Return one line per problem and a last one that sums up."""
        kinds = [problem.kind for problem in self.problems]
        counts = ", ".join(f"{kinds.count(kind)} {kind}" for kind in KINDS if kind in kinds)
        read = f"{self.num_bytes / 1e6:,.1f} MB compared"
        records = f"{self.compared} of {self.records} records"
        size = f"{self.committed} of {self.shards} shards, {records}, {read}"
        if self.excluded:
            size += f", {self.excluded} images left out"
        verdict = f"{len(kinds)} problems ({counts})" if kinds else "no problem"
        return [*map(str, self.problems), f"{self.store}: {self.level}: {verdict}; {size}"]


def shard_problem(
    kind: str, store: str, shard: object, what: str, *, where: str, array: str = ""
) -> Problem:
    """Describe what is wrong with a committed shard that only `repair` and a dump can replace."""
    place = f"{store}: shard {shard}" + (f", array {array}" if array else "")
    message = f"{place}: {what}; {remedy(store, deep=kind == 'invalid')}"
    return Problem(
        kind=kind, where=where, message=message, shard=str(shard), array=array, spoils=True
    )


def unreadable_problem(
    store: str, shard: object, error: UnreadableError, *, where: str, array: str = ""
) -> Problem:
    """Describe that an object of a committed shard cannot be read: lost, or just not readable."""
    if error.lost:
        what = error.reason if array else f"its commit: {error.reason}"
        return shard_problem("damaged", store, shard, what, where=where, array=array)
    message = f"{store}: shard {shard}: {where}: {error.reason}; make it readable, and check again"
    return Problem(kind="unreadable", where=where, message=message, shard=str(shard), array=array)


def remedy(store: str, *, deep: bool = False) -> str:
    """Say how a damaged shard gets replaced; `deep` if only that level of the check finds it."""
    return f"run `{repair_command(store, deep=deep)}`, then the dump again"


def written_again(what: str) -> str:
    """Say how metadata is written again that only a dump, or the source of a copy, can tell."""
    return (
        f"run the dump again with the same config: it writes {what} again, and keeps the shards;"
        " if this is a copy, remove it and copy again"
    )


def repair_command(store: str, *, deep: bool = False) -> str:
    """The command that mends a store, as a shell takes it."""
    return f"python -m storage repair{' --level deep' * deep} {shlex.quote(store)}"
