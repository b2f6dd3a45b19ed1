"""COCO 2017: fetched, checked and unpacked where detectron2 expects it.

    DIR/coco/annotations  DIR/coco/train2017  DIR/coco/val2017

with DIR what `$DETECTRON2_DATASETS` points to. The archives lie in DIR/coco/archives meanwhile.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dataset.fetch import RemoteFile, check_url, fetch, file_md5
from dataset.unpack import require_space, unpack
from storage.progress import format_bytes

BASE_URL = "http://images.cocodataset.org/"


@dataclass(frozen=True, kw_only=True)
class Archive:
    """One archive of COCO.

    Attributes:
        path: below the base URL.
        size_bytes, md5: of the archive.
        folder: the folder under coco/ that it unpacks to.
        unpacked_bytes: about what its files take up, for the check of free space.
        num_images: how many `.jpg` it unpacks to, for a folder of images.
        files: what it unpacks to by name, for the annotations.
    """

    path: str
    size_bytes: int
    md5: str
    folder: str
    unpacked_bytes: int
    num_images: int = 0
    files: tuple[str, ...] = ()

    def is_unpacked(self, coco: Path) -> bool:
        """Whether all its files are there; by name or number alone, not by content."""
        folder = coco / self.folder
        if not folder.is_dir():
            return False
        names = set(os.listdir(folder))
        images = sum(name.endswith(".jpg") for name in names)
        return names.issuperset(self.files) and images >= self.num_images


# Sizes and digests as published with the archives by many who use them.
ARCHIVES: dict[str, Archive] = {
    "train2017": Archive(
        path="zips/train2017.zip",
        size_bytes=19336861798,
        md5="cced6f7f71b7629ddf16f17bbcfab6b2",
        folder="train2017",
        unpacked_bytes=19_500_000_000,
        num_images=118287,
    ),
    "val2017": Archive(
        path="zips/val2017.zip",
        size_bytes=815585330,
        md5="442b8da7639aecaf257c1dceb8ba8c80",
        folder="val2017",
        unpacked_bytes=830_000_000,
        num_images=5000,
    ),
    "annotations": Archive(
        path="annotations/annotations_trainval2017.zip",
        size_bytes=252907541,
        md5="f4bbac642086de4f52a3fdda2de5fa2c",
        folder="annotations",
        unpacked_bytes=850_000_000,
        files=tuple(
            f"{kind}_{split}2017.json"
            for kind in ("captions", "instances", "person_keypoints")
            for split in ("train", "val")
        ),
    ),
}


def download_coco(
    output: str | os.PathLike[str],
    *,
    splits: Sequence[str] = tuple(ARCHIVES),
    base_url: str = BASE_URL,
    remove_archives: bool = False,
    archives: Mapping[str, Archive] = ARCHIVES,
    pause: Callable[[float], None] = time.sleep,
) -> Path:
    """Make COCO 2017 available under a folder; what is there already is left alone.

    Args:
        output: the folder for `$DETECTRON2_DATASETS`.
        splits: which of `archives` to get.
        base_url: the official server, or a mirror with the same paths below it.
        remove_archives: delete each archive once it is unpacked.
        archives: what there is to get; tests pass small ones.
        pause: waits that many seconds between tries; tests pass their own.

    Returns:
        The folder `coco` under `output`.

    Raises:
        ValueError: a file is not what it should be, or the URL is no plain web address.
        ConnectionError: the server cannot be reached.
        OSError: too little disk space, or another download into the folder is running.
    """
    check_url(base_url)
    coco = Path(output) / "coco"
    store = coco / "archives"
    store.mkdir(parents=True, exist_ok=True)
    wanted = {name: archives[name] for name in dict.fromkeys(splits)}
    with _only_one(store):
        todo = []
        for name, archive in wanted.items():
            if archive.is_unpacked(coco):
                _say(f"{name}: already there, in {coco / archive.folder}")
            else:
                todo.append(archive)
        require_space(coco, _peak_bytes(todo, store, remove_archives), "this download")
        for archive in todo:
            _get(archive, coco, store, base_url, pause)
            if remove_archives:
                (store / Path(archive.path).name).unlink()
    return coco


def _get(
    archive: Archive, coco: Path, store: Path, base_url: str, pause: Callable[[float], None]
) -> None:
    """Fetch and unpack one archive."""
    target = store / Path(archive.path).name
    remote = RemoteFile(
        url=base_url.rstrip("/") + "/" + archive.path,
        size_bytes=archive.size_bytes,
        md5=archive.md5,
    )
    if target.exists():
        _check_earlier(target, remote)
    else:
        _say(f"fetching {remote.url} ({format_bytes(remote.size_bytes)})")
        fetch(remote, target, pause=pause)
    written = unpack(target, coco, top=archive.folder)
    if not archive.is_unpacked(coco):
        raise ValueError(f"{target}: unpacked, but files are missing in {coco / archive.folder}")
    _say(f"{archive.folder}: {written:,} files unpacked to {coco / archive.folder}")


def _check_earlier(target: Path, remote: RemoteFile) -> None:
    """Check an archive that somebody put there; it is theirs, so it is not removed."""
    size = target.stat().st_size
    if size != remote.size_bytes:
        raise ValueError(
            f"{target}: expected {remote.size_bytes} bytes, found {size}; delete it to fetch it "
            "again"
        )
    found = file_md5(target)
    if found != remote.md5:
        raise ValueError(
            f"{target}: expected MD5 {remote.md5}, found {found}; delete it to fetch it again"
        )


def _peak_bytes(todo: list[Archive], store: Path, remove_archives: bool) -> int:
    """The most that the disk must take while these archives are worked off in turn."""
    used = peak = 0
    for archive in todo:
        used += max(0, archive.size_bytes - _fetched_bytes(archive, store))
        used += archive.unpacked_bytes
        peak = max(peak, used)
        if remove_archives:
            used -= archive.size_bytes
    return peak


def _fetched_bytes(archive: Archive, store: Path) -> int:
    name = Path(archive.path).name
    parts = (store / name, store / (name + ".partial"))
    return sum(part.stat().st_size for part in parts if part.exists())


@contextmanager
def _only_one(store: Path) -> Iterator[None]:
    """Keep a second download out of the folder; the lock ends with the process."""
    with open(store / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"{store}: another download into this folder is running") from None
        yield


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)
