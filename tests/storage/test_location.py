"""Places of stores: which are taken, and one contract for every backend."""

from __future__ import annotations

import multiprocessing
import pickle
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from zarr.storage import MemoryStore

from storage import CacheReader, ForkedProcessError, StoreAccessError, event_loop, verify
from storage.__main__ import main
from storage.location import Location
from tests.storage.cases import NewLocation, make_cache


class TestBackend:
    def test_objects_are_put_read_listed_and_deleted(self, new_location: NewLocation) -> None:
        place = new_location()
        place.put("a/b/c", b"12345")
        place.put("a/d", b"")
        place.put_many({"a/b/e": b"1", "f": b"22"})
        assert place.get("a/b/c") == b"12345"
        assert place.get_many(["f", "absent", "a/d"]) == [b"22", None, b""]
        assert place.sizes() == {"a/b/c": 5, "a/d": 0, "a/b/e": 1, "f": 2}
        assert place.sizes("a/b") == {"a/b/c": 5, "a/b/e": 1}
        assert place.sizes("nothing") == {}
        assert (place.size("a/b/c"), place.size("absent")) == (5, None)
        place.delete("a/b/c")
        place.delete("a/b/c")
        assert place.get("a/b/c") is None

    def test_ranges_are_read_in_order_and_cut_at_the_end(self, new_location: NewLocation) -> None:
        place = new_location()
        place.put("a", b"0123456789")
        ranges = [("a", 2, 4), ("absent", 0, 1), ("a", 0, 1), ("a", 8, 20)]
        read = place.get_ranges(ranges)
        assert [None if one is None else bytes(one) for one in read] == [b"23", None, b"0", b"89"]

    @pytest.mark.parametrize("size", [0, 1, 9, 10, 11, 25])
    def test_blocks_add_up_to_the_object(self, new_location: NewLocation, size: int) -> None:
        place = new_location()
        data = bytes(range(size))
        place.put("a", data)
        assert b"".join(map(bytes, place.read_blocks("a", block=5))) == data
        assert list(place.read_blocks("absent")) == []

    def test_blocks_that_lie_in_one_buffer_add_up_to_the_object(
        self, new_location: NewLocation, tmp_path: Path
    ) -> None:
        place = new_location()
        (tmp_path / "file").write_bytes(bytes(range(25)))
        place.put_blocks("a", Location(tmp_path).read_blocks("file", block=5))
        assert place.get("a") == bytes(range(25))

    def test_only_the_first_creation_counts(self, new_location: NewLocation) -> None:
        place = new_location()
        assert place.put_if_absent("a", b"one")
        assert not place.put_if_absent("a", b"two")
        assert place.get("a") == b"one"

    def test_setting_replaces_as_a_whole(self, new_location: NewLocation) -> None:
        place = new_location()
        place.put("a", b"longer")
        place.put("a", b"x")
        assert place.get("a") == b"x"
        place.sync(["a"])

    def test_keys_stay_inside_the_prefix(self, new_location: NewLocation) -> None:
        place = new_location()
        for action in (place.get, place.delete, place.sizes, lambda key: place.put(key, b"")):
            with pytest.raises(ValueError, match="does not name an object"):
                action("../outside")


@pytest.mark.parametrize(
    "url",
    [
        "s3://key:secret@bucket/prefix",
        "s3://AKIA@bucket/prefix",
        "s3://bucket/prefix?aws_secret_access_key=secret",
    ],
)
def test_urls_with_credentials_are_refused_without_repeating_them(url: str) -> None:
    with pytest.raises(ValueError, match=r"credentials .* environment variables") as caught:
        Location(url)
    assert "secret" not in str(caught.value).partition("credentials")[0]
    assert "AKIA" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://host/cache", "ftp://host/cache", "file:///tmp/cache"])
def test_unknown_schemes_are_refused_with_the_choices(url: str) -> None:
    with pytest.raises(ValueError, match="expected a local path, s3://, gs://, az://"):
        Location(url)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("s3:/bucket/x", "s3://bucket/prefix"), ("S3:/bucket/x", "s3://bucket/prefix"),
        ("gs:bucket/x", "gs://bucket/prefix"), ("az:", "az://bucket/prefix"),
        ("http:/host/x", "s3://bucket/prefix"),
    ],
)  # fmt: skip
def test_a_url_that_lacks_a_slash_is_no_folder(name: str, form: str) -> None:
    with pytest.raises(ValueError, match=rf"expected {form}, or \./") as caught:
        Location(name)
    assert "bucket/x" not in str(caught.value)  # it may hold a secret


@pytest.mark.parametrize("name", ["C:/caches", "./s3:/bucket/x", "run:2/cache", "/data/s3:/x"])
def test_a_folder_may_have_a_colon_in_its_name(name: str) -> None:
    assert Location(name).is_local


@pytest.mark.parametrize("url", ["s3://bucket/x", "GS://bucket", "s3a://bucket/x", "file:///tmp"])
def test_a_path_made_of_a_url_is_no_folder(url: str) -> None:
    with pytest.raises(ValueError, match=r"expected .*://bucket/prefix, or \./"):
        Location(Path(url))


@pytest.mark.parametrize("name", ["run:1/x", "az:1", "s3:1/x"])
def test_a_path_is_a_folder_whatever_its_name(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    place = Location(Path(f"./{name}"))
    place.put("a", b"1")
    assert (tmp_path / name / "a").read_bytes() == b"1"
    assert Location(str(place)).get("a") == b"1"  # as messages name it


@pytest.mark.parametrize(
    ("rest", "what"),
    [
        ("caches/a#secret", "a '#'"), ("caches\\a", "a backslash"),
        ("caches/a\\secret", "a backslash"), ("caches/secret\n", "a character that cannot be"),
        ("caches/\x07", "a character that cannot be printed"),
        ("caches/secret\xa0a", "a character that cannot be printed"),
        ("my secret/a", "a space in the bucket"),
    ],
)  # fmt: skip
def test_a_character_that_no_url_holds_is_named(rest: str, what: str) -> None:
    with pytest.raises(ValueError, match=rf"^location s3://\.\.\.: holds {what}") as caught:
        Location(f"s3://{rest}")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("path", ["/multi", "one//", "one//two", "one/../two", "./one", ".."])
def test_a_url_has_no_empty_and_no_relative_parts(path: str) -> None:
    with pytest.raises(ValueError, match=r"is empty, '\.' or '\.\.'; expected s3://bucket/prefix"):
        Location(f"s3://caches/{path}")


@pytest.mark.parametrize(
    ("name", "shown"),
    [("out/", "out"), ("out//", "out"), ("/", "/"), ("s3://caches/one/", "s3://caches/one"),
     ("s3://caches/", "s3://caches")],
)  # fmt: skip
def test_a_name_has_no_slash_at_its_end(name: str, shown: str) -> None:
    assert str(Location(name)) == shown


def test_an_empty_location_is_not_the_working_directory(
    finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["copy", str(finished), ""]) == 1
    assert capsys.readouterr().err.startswith("error: location is empty; expected a folder or s3")


def test_a_url_without_a_bucket_is_refused() -> None:
    with pytest.raises(ValueError, match="names no bucket"):
        Location("s3:///prefix")


def test_object_stores_without_their_client_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    monkeypatch.setitem(sys.modules, "obstore.store", None)
    with pytest.raises(ModuleNotFoundError, match="extra 's3'"):
        Location("s3://bucket/prefix").get("a")


def test_an_unfinished_file_that_another_writer_removes_is_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, left = Path.replace, [2]

    def swept(self: Path, target: str) -> Path:
        if left[0]:
            left[0] -= 1
            self.unlink()
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", swept)
    place = Location(tmp_path)
    place.put("a", b"1")
    assert (place.get("a"), left) == (b"1", [0])


def test_a_location_is_pickled_by_name(tmp_path: Path) -> None:
    place = Location(tmp_path)
    place.put("a", b"1")
    assert pickle.loads(pickle.dumps(place)).get("a") == b"1"


def test_no_object_store_in_a_process_forked_from_its_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(event_loop, "_client_was_forked", True)
    with pytest.raises(ForkedProcessError, match="spawn"):
        Location("s3://bucket/prefix").get("a")


def _fork_flag(queue: multiprocessing.Queue[bool]) -> None:
    queue.put(event_loop.client_was_forked())


@pytest.mark.parametrize(
    ("method", "client", "refused"), [("fork", True, True), ("fork", False, False)]
)
def test_a_fork_is_noticed_only_where_the_client_was_loaded(
    monkeypatch: pytest.MonkeyPatch, method: str, client: bool, refused: bool
) -> None:
    if client:
        monkeypatch.setitem(sys.modules, "obstore", object())
    else:
        monkeypatch.delitem(sys.modules, "obstore", raising=False)
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_fork_flag, args=(queue,))
    process.start()
    assert queue.get(timeout=20) is refused
    process.join()


def _read_first(reader: CacheReader, queue: multiprocessing.Queue[int]) -> None:
    queue.put(int(reader.read(0)["pixels_crc32c"]))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_reader_works_in_workers(finished: Path, method: str) -> None:
    reader = CacheReader(finished)
    expected = int(reader.read(0)["pixels_crc32c"])
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_read_first, args=(reader, queue))
    process.start()
    assert queue.get(timeout=60) == expected
    process.join()


def _read_or_say_why(reader: CacheReader, queue: multiprocessing.Queue[str]) -> None:
    try:
        queue.put(str(int(reader.read(0)["pixels_crc32c"])))
    except ForkedProcessError as error:
        queue.put(str(error))


@pytest.mark.s3
def test_an_object_store_is_read_in_spawned_workers_and_refused_in_forked_ones(
    s3_bucket: str,
) -> None:
    make_cache(Location(f"{s3_bucket}/workers"))
    reader = CacheReader(f"{s3_bucket}/workers")
    expected = {"spawn": str(int(reader.read(0)["pixels_crc32c"])), "fork": "'spawn' or"}
    for method, said in expected.items():
        context: Any = multiprocessing.get_context(method)
        queue = context.Queue()
        process = context.Process(target=_read_or_say_why, args=(reader, queue))
        process.start()
        assert said in queue.get(timeout=60)
        process.join()


@pytest.mark.s3
def test_processes_verify_an_object_store(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.verification._WORK_PER_PROCESS", 1)
    make_cache(Location(f"{s3_bucket}/processes"))
    assert verify(f"{s3_bucket}/processes", workers=2).ok


@pytest.mark.parametrize(
    "value", ["", "host", "127.0.0.1:9000", "http://", "http://[::1", "http://host:99999",
              "http://host:port", "s3://host", "http:/host", "user:secret@host"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("scheme", "name"),
    [("s3", "AWS_ENDPOINT_URL"), ("s3", "AWS_ENDPOINT"), ("az", "AZURE_STORAGE_ENDPOINT")],
)
def test_an_endpoint_that_is_no_url_is_one_line(
    scheme: str, name: str, value: str, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv(name, value)
    assert main(["verify", f"{scheme}://bucket/prefix"]) == 1
    assert capfd.readouterr().err == (  # all of it: the client's panic would stand there, too
        f"error: the environment variable {name} is no URL of an endpoint: expected https://host"
        " or http://host:port; correct it, or unset it\n"
    )


def test_an_endpoint_without_encryption_names_the_variable_that_allows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("AWS_ALLOW_HTTP", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(ValueError, match="set AWS_ALLOW_HTTP=true"):
        Location("s3://bucket/prefix").get("a")


@pytest.mark.s3
@pytest.mark.parametrize("command", [["verify"], ["info"], ["repair"], ["drop-views", "--keep=1"]])
def test_a_bucket_that_is_not_there_is_one_line(
    s3_bucket: str, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command[0], f"{s3_bucket}-not/x", *command[1:]]) == 1
    assert capsys.readouterr().err == (
        f"error: {s3_bucket}-not/x: the object store failed: 404 Not Found (NoSuchBucket);"
        " check the bucket's name\n"
    )
    assert main([command[0], f"{s3_bucket}/nothing", *command[1:]]) == 1
    assert "no teacher cache here" in capsys.readouterr().err


@pytest.mark.s3
def test_an_object_store_that_cannot_be_reached_is_one_line(
    s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("storage.remote.RETRIES", {"max_retries": 1})
    with pytest.raises(StoreAccessError) as caught:
        CacheReader("s3://caches/x")
    assert re.fullmatch(
        r"s3://caches/x/(zarr.json|manifest.sha256): the object store failed: .*refused.*",
        str(caught.value),
    )


def test_a_forked_process_gets_an_event_loop_of_its_own() -> None:
    place = Location(MemoryStore())
    place.put("a", b"1")  # starts the loop's thread, which a fork does not copy
    context: Any = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=lambda: queue.put(place.get("a")))
    process.start()
    assert queue.get(timeout=20) == b"1"
    process.join()


def test_a_link_to_itself_is_no_cache_and_takes_no_copy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    make_cache(tmp_path / "cache")
    assert main(["info", str(loop)]) == 1
    assert main(["copy", str(tmp_path / "cache"), str(loop)]) == 1
    told = capsys.readouterr().err
    assert f"error: {loop}: no teacher cache here" in told
    assert "(Too many levels of symbolic links)" in told
