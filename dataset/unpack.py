"""Unpacking a ZIP archive: inside one folder only, and again where it was interrupted."""

from __future__ import annotations

import shutil
import stat
import zipfile
import zlib
from pathlib import Path

from dataset.image_files import image_path
from storage.progress import Progress, format_bytes
from storage.whole import replaced

_CHUNK_BYTES = 1 << 20


def unpack(archive: Path, into: Path, *, top: str) -> int:
    """Unpack an archive whose members all lie in the folder `top`.

    A file that is already there with the right size and CRC-32 is left alone. Every file appears
    under its name only when it is complete.

    Args:
        archive: the ZIP file.
        into: where to put `top`.
        top: the one folder that the archive may write to.

    Returns:
        How many files were written.

    Raises:
        ValueError: the archive is damaged, or a member would be written elsewhere.
        OSError: the disk is full, or cannot be written.
    """
    written = 0
    try:
        with zipfile.ZipFile(archive) as source:
            files = [info for info in source.infolist() if not info.is_dir()]
            targets = [_target(info, into, top) for info in files]
            missing = [not _is_there(t, i) for t, i in zip(targets, files, strict=True)]
            needed = sum(i.file_size for i, m in zip(files, missing, strict=True) if m)
            require_space(into, needed, f"unpacking {archive.name}")
            total = sum(info.file_size for info in files)
            with Progress(f"unpacking {archive.name}", total=total, unit="B") as progress:
                for info, target in zip(files, targets, strict=True):
                    if _is_there(target, info) and _crc32(target) == info.CRC:
                        progress.update(info.file_size)
                    else:
                        _write(source, info, target, progress)
                        written += 1
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise ValueError(
            f"{archive}: damaged archive ({error}); delete it and run the command again"
        ) from error
    return written


def require_space(folder: Path, needed_bytes: int, what: str) -> None:
    """Check for free disk space before the work begins.

    Raises:
        OSError: there is too little.
    """
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise OSError(
            f"{folder}: {what} needs {format_bytes(needed_bytes)}, only {format_bytes(free)} are "
            "free; free some space, choose another --output or use --remove-archives"
        )


def _target(info: zipfile.ZipInfo, into: Path, top: str) -> Path:
    """Where a member goes; refuse what would land outside of `top`."""
    is_link = stat.S_ISLNK(info.external_attr >> 16)
    try:
        target = Path(image_path(into, info.filename))
    except ValueError:
        target = None
    if target is None or is_link or target.relative_to(into).parts[0] != top:
        raise ValueError(
            f"{info.filename!r} in the archive is a link or lies outside of {top}/; "
            "nothing was unpacked"
        )
    return target


def _is_there(target: Path, info: zipfile.ZipInfo) -> bool:
    return target.is_file() and target.stat().st_size == info.file_size


def _crc32(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            value = zlib.crc32(chunk, value)
    return value


def _write(
    source: zipfile.ZipFile, info: zipfile.ZipInfo, target: Path, progress: Progress
) -> None:
    """Write one member; reading it to its end compares its CRC-32."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with (
        replaced(target) as partial,
        source.open(info) as packed,
        open(partial, "wb") as file,
    ):
        while chunk := packed.read(_CHUNK_BYTES):
            file.write(chunk)
            progress.update(len(chunk))
