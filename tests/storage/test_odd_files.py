"""What is no regular file, in the place of any part of a store: one problem, and repair removes it.

A folder, a FIFO, a socket, a link to itself, to nothing or to a folder above; a file for a folder.
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from storage import CacheReader, CacheWriter, compare, drop_views, repair, verify
from storage.__main__ import main
from storage.errors import CacheError, MissingShardError, StoreAccessError, UnreadableError
from storage.layout import commit_key, object_key
from storage.location import Location
from tests.storage import faults
from tests.storage.cases import (
    FIRST,
    contents,
    fill,
    make_arrays,
    make_index,
    make_manifest,
    open_writer,
)

FULL = os.environ.get("GID_FAULTS") == "full"  # as `make faults` has it
OBJECT = "buckets/0032x0048/echo/c/0/0"


def put_folder(path: Path) -> None:
    path.mkdir()


def put_full_folder(path: Path) -> None:
    (path / "inner").mkdir(parents=True)
    (path / "inner" / "note").write_bytes(b"?")


def put_socket(path: Path) -> None:
    before = Path.cwd()
    os.chdir(path.parent)  # a socket's path may not be long
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(before)


ODD: dict[str, Callable[[Path], Any]] = {
    "a folder": put_folder,
    "a folder with files": put_full_folder,
    "a FIFO": os.mkfifo,
    "a socket": put_socket,
    "a device": lambda path: os.mknod(path, 0o666 | 0o020000, os.makedev(1, 5)),  # /dev/zero
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to a folder above": lambda path: path.symlink_to(".."),
    "a link to nothing": lambda path: path.symlink_to("nowhere"),
}
SHARD_PARTS = (commit_key(FIRST), OBJECT)
METADATA = ("buckets/zarr.json", "buckets/0032x0048/votes/zarr.json", "index/zarr.json")
VITAL = ("zarr.json", "manifest.sha256", "index/slot/c/0")


@pytest.fixture(autouse=True)
def _no_waiting() -> Iterator[None]:
    """Whatever waits for the other end of a FIFO would wait for ever."""

    def fail(*_: object) -> None:
        raise TimeoutError("this hangs")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(20)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def put(kind: str, path: Path) -> None:
    """Put something odd in the place of what is there, if anything."""
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        ODD[kind](path)
    except PermissionError:
        pytest.skip(f"{kind} cannot be made here")


def dump(cache: Path) -> None:
    """Do what the messages say next."""
    index = make_index(num_views=2)
    fill(CacheWriter(cache, make_manifest(index), index))


def mend(cache: Path) -> None:
    with suppress(FileNotFoundError):  # no root: the dump writes it
        repair(cache)
    dump(cache)


def pairs(kinds: Iterable[str], keys: Iterable[str]) -> list[tuple[str, str]]:
    """Every kind at every key; in the short form each kind once, and each key once."""
    every = list(itertools.product(kinds, keys))
    rounds = itertools.cycle(kinds), itertools.cycle(keys)
    some = itertools.islice(zip(*rounds, strict=False), max(len(list(kinds)), len(list(keys))))
    return every if FULL else list(some)


@pytest.mark.parametrize(("kind", "key"), pairs(ODD, [*SHARD_PARTS, METADATA[1], *VITAL]))
def test_one_problem_names_it_and_repair_and_dump_mend_it(cache: Path, kind: str, key: str) -> None:
    whole = contents(cache)
    put(kind, cache / key)
    if kind == "a link to nothing" and key == "zarr.json":
        with pytest.raises(FileNotFoundError, match="is absent, but manifest"):
            verify(cache)
    else:
        (problem,) = verify(cache).problems
        line = str(problem)
        assert "\n" not in line and str(cache) in line
        assert "storage repair" in line or "run the dump again" in line
        if kind != "a link to nothing":  # that is as good as absent
            what = kind.partition(" with")[0]
            assert problem.where == key
            assert f"{what} lies in its place" in line or kind.startswith("a link to a folder")
        assert problem.shard == faults.shard_of(key)
    mend(cache)
    assert contents(cache) == whole
    assert not (cache / key).is_symlink() and verify(cache, "deep").ok


@pytest.mark.parametrize("level", ["quick", "full", "deep"])
def test_it_hides_no_other_damage(cache: Path, level: str) -> None:
    odd = [*SHARD_PARTS, "commits/0048x0032/00000.json", *METADATA]
    for kind, key in zip(("a FIFO", "a folder") * 3, odd, strict=True):
        put(kind, cache / key)
    (cache / object_key(FIRST, CacheReader(cache).manifest.arrays[FIRST.bucket][1])).write_bytes(
        b"short"
    )
    (cache / "notes.txt").write_bytes(b"?")
    found = {problem.where: problem.kind for problem in verify(cache, level).problems}
    assert found.pop("notes.txt") == "foreign"
    assert found == dict.fromkeys([commit_key(FIRST), *odd[2:]], "damaged")


@pytest.mark.parametrize("kind", ["a folder", "a folder with files", "a FIFO"])
@pytest.mark.parametrize("committed", [True, False])
def test_in_the_place_of_an_object_it_stops_a_dump_with_the_way_out(
    tmp_path: Path, kind: str, committed: bool
) -> None:
    writer = open_writer(tmp_path / "cache")
    key = (
        commit_key(FIRST)
        if committed
        else object_key(FIRST, writer.manifest.arrays["0032x0048"][0])
    )
    put(kind, tmp_path / "cache" / key)
    if kind == "a FIFO" and not committed:
        writer.write(FIRST, make_arrays(writer, FIRST))  # a rename replaces it
        return
    with pytest.raises(CacheError, match=rf"(?s){key}.* lies .*`python -m storage repair"):
        writer.write(FIRST, make_arrays(writer, FIRST))
    repair(tmp_path / "cache")
    fill(writer)
    assert verify(tmp_path / "cache").ok


@pytest.mark.parametrize(
    ("kind", "key"),
    pairs(
        ["a file", "a FIFO", "a link to nothing", "a link to itself"],
        ["commits", "commits/0032x0048", "buckets/0048x0032/votes", "index", "claims", "log",
         "claims/0032x0048", "claims/metadata/00000", "buckets/0032x0048/echo/c/0"],
    ),
)  # fmt: skip
def test_in_the_place_of_a_folder_it_is_removed_too(cache: Path, key: str, kind: str) -> None:
    whole = contents(cache)
    if kind == "a file":
        put("a folder", cache / key)
        (cache / key).rmdir()
        (cache / key).write_bytes(b"?")
    else:
        put(kind, cache / key)
    assert not verify(cache).ok
    for _ in range(2):  # once more: without its index, no shard could be judged
        mend(cache)
    assert contents(cache) == whole and verify(cache).ok
    assert not (cache / key).is_symlink() and not (cache / key).is_file()


@pytest.mark.parametrize("kind", ["a folder", "a FIFO", "a link to itself"])
def test_a_reader_names_shard_array_and_way_out(cache: Path, kind: str) -> None:
    put(kind, cache / OBJECT)
    with pytest.raises(MissingShardError, match=r"shard 0032x0048/00000, array echo: a .* lies"
                       r" in its place .*python -m storage repair"):  # fmt: skip
        CacheReader(cache).read(0)
    put(kind, cache / commit_key(FIRST))
    with pytest.raises(UnreadableError, match=r"commits/0032x0048/00000.json: a .* lies in its"):
        CacheReader(cache).read(0)


@pytest.mark.parametrize("kind", ODD)
def test_elsewhere_it_is_left_to_a_person(cache: Path, kind: str) -> None:
    whole = contents(cache)
    put(kind, cache / "buckets/0032x0048/mine")
    problems = verify(cache).problems
    assert [problem.kind for problem in problems] == (["foreign"] if kind != "a folder" else [])
    assert repair(cache).left == problems
    dump(cache)
    assert os.path.lexists(cache / "buckets/0032x0048/mine")
    assert {key: contents(cache)[key] for key in whole} == whole


def test_links_that_lead_round_in_circles_are_listed_once(cache: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in "abc":
        (elsewhere / name).symlink_to(cache)
        (cache / "buckets" / name).symlink_to(elsewhere)
    found = Location(cache).listing()
    assert sum("a link to a folder above it" in what for what in found.odd.values()) == 9
    assert len(found.sizes) == len(contents(cache))


@pytest.mark.skipif(not FULL, reason="takes seconds; a part of `make faults`")
def test_folders_deeper_than_any_stack_are_listed(cache: Path) -> None:
    before = Path.cwd()
    os.chdir(cache)
    try:
        for _ in range(1500):
            os.mkdir("d")
            os.chdir("d")
    finally:
        os.chdir(before)
    try:
        assert verify(cache).ok
    finally:
        for depth in range(1500, 0, -1):  # pytest's own clean-up does recurse
            (cache / "/".join("d" * depth)).rmdir()


def test_names_that_are_no_text_are_one_line(
    cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (b"two\nlines", b"\xff\xfe.partial", "größe".encode()):
        (cache / "buckets" / os.fsdecode(name)).write_bytes(b"?")
    assert main(["verify", str(cache)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and r"'buckets/two\nlines'" in "".join(lines)
    assert repair(cache).removed == ("buckets/\udcff\udcfe.partial",)


def test_other_commands_say_so_in_one_line(cache: Path, finished: Path) -> None:
    put("a FIFO", cache / OBJECT)
    with pytest.raises(MissingShardError, match="a FIFO lies in its place"):
        compare(cache, finished)
    put("a folder", cache / "index/zarr.json")
    with pytest.raises(StoreAccessError, match=r"index/zarr\.json cannot be written: a folder"):
        drop_views(cache, 1)


def test_a_location_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"?")
    with pytest.raises(StoreAccessError, match="a file lies here; choose another location"):
        open_writer(tmp_path / "file")
