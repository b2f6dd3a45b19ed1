"""The command line: exit codes, one clear line per problem, and no PyTorch anywhere."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from storage import plan_to_json, verify
from storage.__main__ import main
from storage.layout import commit_key
from storage.schema import ShardId
from tests.fresh import stdout_of
from tests.storage.cases import WIDE, contents, first_path, flip, make_index, make_manifest

FIRST = ShardId(WIDE.name, 0)


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = main([str(one) for one in arguments])
    return (code, *capsys.readouterr())


def damage(cache: Path) -> None:
    path = cache / "buckets/0032x0048/echo/c/0/0"
    data = bytearray(path.read_bytes())
    data[9] ^= 4
    path.write_bytes(data)


def test_info(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "info", finished)
    assert code == 0
    assert "records: 16\n" in out and "committed: 6\n" in out and "preset: exact\n" in out
    code, out, _ = run(capsys, "info", finished, "--json")
    info = json.loads(out)
    assert (info["views"], info["shards"], info["committed"]) == (2, 6, 6)
    assert info["buckets"]["0032x0048"]["bytes_per_record"]["echo"] == 150


def test_verify_of_an_intact_store(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for level in ("quick", "full", "deep"):
        code, out, _ = run(capsys, "verify", finished, "--level", level)
        assert code == 0
        assert out.startswith(f"{finished}: {level}: no problem; 6 of 6 shards, 16 of 16 records")
        assert out.count("\n") == 1


def test_verify_of_a_damaged_store(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(cache)
    (cache / commit_key(ShardId(WIDE.name, 1))).unlink()
    code, out, _ = run(capsys, "verify", cache)
    assert code == 1
    lines = out.splitlines()
    assert [line.partition(":")[0] for line in lines[:-1]] == ["uncommitted", "damaged"]
    assert "2 problems (1 damaged, 1 uncommitted)" in lines[-1]
    code, out, _ = run(capsys, "verify", cache, "--json")
    report = json.loads(out)
    assert (code, report["ok"], len(report["problems"])) == (1, False, 2)


def test_verify_against_a_plan(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = tmp_path / "plan.json"
    for num_views, expected in ((2, 0), (3, 1)):
        index = make_index(num_views=num_views)
        plan.write_text(json.dumps(plan_to_json(make_manifest(index), index)))
        assert run(capsys, "verify", finished, "--expect", plan)[0] == expected
    plan.write_text("{")
    code, out, err = run(capsys, "verify", finished, "--expect", plan)
    assert (code, out) == (1, "") and err.startswith(f"error: {plan}: not valid JSON")


def test_repair(cache: Path, finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    damage(cache)
    before = contents(cache)
    code, out, _ = run(capsys, "repair", cache, "--dry-run")
    assert code == 0 and "1 shards would be dropped" in out
    assert contents(cache) == before
    code, out, _ = run(capsys, "repair", cache)
    assert code == 0
    assert out.splitlines() == [
        "drop: 0032x0048/00000",
        f"{cache}: 1 shards dropped; run the dump again to write them",
    ]
    assert commit_key(FIRST) not in contents(cache)
    code, out, _ = run(capsys, "repair", cache, "--json")
    assert code == 0 and json.loads(out)["dropped"] == []


def test_repair_fails_where_it_cannot_help(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (cache / "zarr.json").write_text("{}")
    code, out, _ = run(capsys, "repair", cache)
    assert code == 1 and out.startswith(f"left: damaged: {cache}: zarr.json does not")


def test_compare(finished: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "compare", finished, cache)[0] == 0
    (cache / commit_key(FIRST)).unlink()
    code, out, _ = run(capsys, "compare", finished, cache)
    alone = f"1 objects are in one alone, the first is {commit_key(FIRST)}\n"
    assert code == 1 and out.endswith(f"same plan, {alone}")
    flip(first_path(cache), 3)
    code, out, _ = run(capsys, "compare", finished, cache)
    assert code == 1 and out.endswith(f"same plan, 1 objects differ, {alone}")
    code, out, _ = run(capsys, "compare", finished, cache, "--json")
    found = json.loads(out)
    assert code == 1 and found["same_bytes"] is False
    assert len(found["keys"]) == 2 and found["alone"] == [commit_key(FIRST)]


@pytest.mark.parametrize(
    "command", ["info", "verify", "verify --level quick --json", "repair", "drop-views --keep 1"]
)
@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("nothing", "nothing: no teacher cache here"),
        ("empty", "empty: no teacher cache here"),
        ("a_file", "a_file: no teacher cache here"),
        ("s3://key:secret@bucket", "credentials and options do not belong into a URL"),
        ("s3://", "names no bucket"),
        ("http://host", "expected a local path, s3://, gs://, az://"),
        ("a\0b", "embedded null"),  # a "byte" or, from Python 3.13 on, a "character"
    ],
)
def test_a_store_that_cannot_be_opened_is_one_line(
    command: str, where: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "a_file").write_text("no store")
    name, *options = command.split()
    code, out, err = run(capsys, name, where, *options)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and said in err and err.count("\n") == 1


@pytest.mark.parametrize("swapped", [False, True])
def test_a_store_that_has_nothing_to_be_compared_with_is_one_line(
    finished: Path, tmp_path: Path, swapped: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    stores = [finished, tmp_path]
    code, out, err = run(capsys, "compare", *(reversed(stores) if swapped else stores))
    assert (code, out) == (1, "")
    assert err.startswith(f"error: {tmp_path}: no teacher cache here") and err.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "No such file"),
        (b"{", "plan.json: not valid JSON"),
        (b"\xff\xfe", "plan.json: not valid JSON"),
        (b"[]", "plan.json: not a teacher cache"),
        (b'{"format":{"name":"gid-teacher-cache","version":2}}', "plan.json: not a plan"),
        (b'{"format":{"name":"gid-teacher-cache","version":9}}', "plan.json: written in format"),
    ],
)
def test_a_plan_that_is_none_is_one_line(
    finished: Path, tmp_path: Path, content: bytes | None, said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    plan = tmp_path / "plan.json"
    if content is not None:
        plan.write_bytes(content)
    code, out, err = run(capsys, "verify", finished, "--expect", plan)
    assert (code, out) == (1, "")
    assert err.startswith("error: ") and said in err and err.count("\n") == 1


@pytest.mark.parametrize("command", ["info", "verify", "repair", "compare", "drop-views"])
@pytest.mark.parametrize("key", ["zarr.json", "manifest.sha256", "index/seed/c/0"])
def test_damaged_metadata_is_one_line_that_says_what_to_do(
    cache: Path, command: str, key: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = cache / key
    path.write_bytes(path.read_bytes()[:-1])
    options = {"compare": [cache], "drop-views": ["--keep", 1]}.get(command, [])
    code, out, err = run(capsys, command, cache, *options)
    assert code == 1
    (line,) = [line for line in (out + err).splitlines() if "run the dump again" in line]
    assert str(cache) in line and "keeps the shards; if this is a copy, remove it and" in line


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "interrupted by SIGTERM"),
        (signal.SIGHUP, 129, "interrupted by SIGHUP"),
    ],
)
def test_a_signal_is_one_line(
    number: int, code: int, said: str,
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    before = signal.getsignal(number)
    monkeypatch.setattr("storage.commands.verify", lambda *_, **__: signal.raise_signal(number))
    assert run(capsys, "verify", finished) == (code, "", f"{said}\n")
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("second", [signal.SIGTERM, signal.SIGHUP])
def test_a_second_signal_does_not_abort_what_the_first_began(
    second: int,
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    given_back = []

    def interrupted(*_: Any, **__: Any) -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            signal.raise_signal(second)
            given_back.append("a claim")

    monkeypatch.setattr("storage.commands.verify", interrupted)
    assert run(capsys, "verify", finished) == (143, "", "interrupted by SIGTERM\n")
    assert given_back


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_is_ignored_stays_so(
    number: int,
    finished: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def signalled(*args: Any, **options: Any) -> Any:
        signal.raise_signal(number)
        return verify(*args, **options)

    monkeypatch.setattr("storage.commands.verify", signalled)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        assert run(capsys, "verify", finished)[0] == 0
    finally:
        signal.signal(number, before)


def test_a_command_runs_in_any_thread(finished: Path) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["info", str(finished)])))
    thread.start()
    thread.join()
    assert codes == [0]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["check", "x"],
        ["verify"],
        ["verify", "x", "--level", "thorough"],
        ["verify", "x", "--workers", "0"],
        ["verify", "x", "--workers", "many"],
        ["repair", "x", "--level", "quick"],
        ["drop-views", "x"],
        ["compare", "x"],
    ],
)
def test_wrong_use_exits_with_two(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m storage" in capsys.readouterr().err


def test_the_commands_import_neither_pytorch_nor_detectron2(cache: Path) -> None:
    damage(cache)
    script = f"""
import sys
import threading
from storage.__main__ import main
assert main(["info", {str(cache)!r}]) == 0
assert main(["verify", {str(cache)!r}, "--level", "deep"]) == 1
assert main(["compare", {str(cache)!r}, {str(cache)!r}]) in (0, 1)
assert main(["repair", {str(cache)!r}]) == 0
import storage
reader = storage.CacheReader({str(cache)!r})
reader.read(len(reader) - 1)
loaded = {{"torch", "torchvision", "detectron2", "obstore"}} & set(sys.modules)
assert not loaded, loaded
"""
    stdout_of([sys.executable, "-c", script])


def test_the_module_runs(finished: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "storage", "verify", str(finished), "--level", "quick"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "no problem" in done.stdout and done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "phases"),
    [
        (["verify", "CACHE", "--json"], ["verify full"]),
        (["repair", "CACHE"], ["verify full"]),
        (["compare", "CACHE", "OTHER"], ["compare bytes", "compare records"]),
        (["drop-views", "CACHE", "--keep", "1"], ["remove"]),
    ],
)
def test_long_phases_report_without_a_terminal(
    cache: Path,
    finished: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    phases: list[str],
) -> None:
    monkeypatch.setattr("storage.progress.LINE_EVERY_SEC", 0.0)
    places = {"CACHE": str(cache), "OTHER": str(finished)}
    _, _, err = run(capsys, *(places.get(one, one) for one in arguments))
    assert {line.partition(": ")[0] for line in err.splitlines()} == set(phases)
