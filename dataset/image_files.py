"""Where the images of an annotation file are: from its `file_name`s to paths under an image root.

A name is a path below the root. Tools write it in other ways too, and three of them have one
meaning and are followed: backslashes as separators, where no file has that very name; a path that
begins with the last folders of the root (`images/a.jpg` under `folder/images`); and an absolute
path that lies inside the root. Annotation files come from anywhere, so none leads out of the root;
links inside it are the user's own doing and are followed.
"""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

from dataset.tables import ImageTable

_REMEDY = "it must be a relative path without `..`, below the image folder"


def refuse_escape(file_name: str) -> None:
    """Refuse a name that lies below no root at all; an absolute one may lie in some.

    Raises:
        ValueError: the name is empty, or has a drive, a `..` or a NUL in it.
    """
    parts = file_name.replace("\\", "/").split("/")
    has_drive = len(parts[0]) == 2 and parts[0][1] == ":"
    is_share = file_name.startswith("\\")
    if not file_name or has_drive or is_share or ".." in parts or "\0" in file_name:
        raise _escape(file_name)


def image_path(root: str | os.PathLike[str], file_name: str) -> str:
    """Find the file that a `file_name` of an annotation file means; it need not be there.

    Raises:
        ValueError: the name leads out of the root.
    """
    paths = [os.path.join(os.fspath(root), name) for name in _meanings(root, file_name)]
    if len(paths) > 1:
        return next(filter(os.path.isfile, paths), paths[0])
    return paths[0]


class MissingImagesError(FileNotFoundError):
    """Images of a table are not under its root.

    Attributes:
        missing: id to file name of each.
        is_everything: whether no image is there, so that the root is the wrong one.
    """

    def __init__(self, message: str, missing: dict[int, str], *, is_everything: bool) -> None:
        super().__init__(message)
        self.missing = missing
        self.is_everything = is_everything


class ImageFolder:
    """The images under one root, found by listing folders once.

    On a network disk that is the difference between a second and minutes for asking file by file.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = os.fspath(root)
        self._listings: dict[str, frozenset[str]] = {}

    def find(self, file_name: str) -> str | None:
        """Find the path of an image, or None where it is missing.

        Raises:
            ValueError: the name leads out of the root.
        """
        for name in _meanings(self.root, file_name):
            path = os.path.join(self.root, name)
            if self._is_there(path):
                return path
        return None

    def hint(self, file_name: str) -> str:
        """Say what is there in place of a missing image, as the end of a sentence; "" if nothing.

        It is a file whose name differs in letter case, percent-encoding, Unicode form or ending,
        or that lies in the root itself.
        """
        for name in _meanings(self.root, file_name):
            near = self._nearest(name)
            if near is not None:
                return f"; {near!r} is there, which {_difference(name, near)}: write that"
        return ""

    def _is_there(self, path: str) -> bool:
        folder, name = os.path.split(path)
        return name in self._listing(folder)

    def _listing(self, folder: str) -> frozenset[str]:
        if folder not in self._listings:
            is_folder = os.path.isdir(folder)
            self._listings[folder] = frozenset(os.listdir(folder) if is_folder else ())
        return self._listings[folder]

    def _nearest(self, name: str) -> str | None:
        found: list[str] = []
        parts = [part for part in name.split("/") if part not in ("", ".")]
        for part in parts:
            listing = self._listing(os.path.join(self.root, *found))
            near = [part] if part in listing else _near_names(part, listing)
            if not near:
                break
            found.append(near[0])
        if len(found) == len(parts):
            return "/".join(found)
        return parts[-1] if len(parts) > 1 and parts[-1] in self._listing(self.root) else None


def require_images(table: ImageTable, root: str | os.PathLike[str]) -> list[str]:
    """Find every image file, before long work starts; nothing is opened.

    Returns:
        N paths, in the table's order.

    Raises:
        MissingImagesError: images are missing; the message counts them and names the first.
        ValueError: a file name leads out of the root.
    """
    folder = ImageFolder(root)
    paths = [folder.find(name) for name in table.file_names]
    images = zip(table.ids.tolist(), table.file_names, paths, strict=True)
    missing = {image_id: name for image_id, name, path in images if path is None}
    if missing:
        first = next(iter(missing.values()))
        raise MissingImagesError(
            f"{folder.root}: {len(missing)} of {len(paths)} images are missing, the first is "
            f"{first!r}{folder.hint(first)}; `python -m dataset check` lists them all",
            missing,
            is_everything=len(missing) == len(paths),
        )
    return [path for path in paths if path is not None]


def _meanings(root: str | os.PathLike[str], file_name: str) -> list[str]:
    """The paths below the root that a name can mean, the most literal one first; never none."""
    refuse_escape(file_name)
    spellings = [file_name]
    if "\\" in file_name:
        spellings.append(file_name.replace("\\", "/"))
    found = [meaning for one in spellings for meaning in _below(os.fspath(root), one)]
    if not found:
        raise _escape(file_name)
    return found


def _below(root: str, name: str) -> Iterator[str]:
    """A name as a path below the root, and without folders that the root ends with."""
    if name.startswith("/"):
        for base in dict.fromkeys((os.path.abspath(root), os.path.realpath(root))):
            path = os.path.normpath(name)
            if path.startswith(os.path.join(base, "")):
                yield os.path.relpath(path, base)
        return
    yield name
    if "/" not in name:
        return
    parts = [part for part in name.split("/") if part not in ("", ".")]
    above = Path(os.path.abspath(root)).parts
    for count in range(1, len(parts)):
        if tuple(parts[:count]) == above[-count:]:
            yield "/".join(parts[count:])


def _escape(file_name: str) -> ValueError:
    return ValueError(f"file_name {file_name!r} leads out of the image root; {_REMEDY}")


def _near_names(name: str, listing: frozenset[str]) -> list[str]:
    """Names that a person would take for this one: the same spelling, or another ending alone."""
    wanted = _key(name)
    same = sorted(other for other in listing if _key(other) == wanted)
    if same or not os.path.splitext(name)[1]:
        return same
    stem = _key(os.path.splitext(name)[0])
    return sorted(other for other in listing if _key(os.path.splitext(other)[0]) == stem)


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(name)).casefold()


def _difference(name: str, near: str) -> str:
    folded, other = name.casefold(), near.casefold()
    if folded == other:
        return "differs in letter case"
    if unquote(folded) == unquote(other):
        return "differs in percent-encoding"
    forms = [unicodedata.normalize("NFC", text) for text in (folded, other)]
    if forms[0] == forms[1]:
        return "is another Unicode form of it (composed or not)"
    if _key(name) == _key(near):
        return "is another spelling of it"
    if os.path.basename(name) == near:
        return "lies in no folder"
    return "has another ending"
