"""URLs of object stores: told from local paths, and refused where they cannot be meant."""

from __future__ import annotations

import re
from collections.abc import Collection
from urllib.parse import urlsplit

URL_SCHEMES = ("s3", "gs", "az")

# How a URL begins that lacks a slash, or both. A single letter is a drive.
_BEGIN = re.compile(r"([A-Za-z][A-Za-z0-9+.-]+):(/?)")


def cut_short(name: str, schemes: Collection[str]) -> re.Match[str] | None:
    """How a name begins that was meant for a URL, without `://` in it: scheme and slash, if any.

    Without any slash, of one of these schemes alone: `s3:bucket` would be a folder of that name.
    """
    begin = _BEGIN.match(name)
    return begin if begin and (begin[2] or begin[1].lower() in schemes) else None


def is_url(name: str) -> bool:
    """Return whether a place is a URL of a known scheme, rather than a local path.

    Raises:
        ValueError: it is empty, a URL of another scheme, a malformed one, or one with credentials
            or options in it, which the message does not repeat.
    """
    if not name:
        raise ValueError("location is empty; expected a folder or s3://bucket/prefix")
    scheme, separator, _ = name.partition("://")
    if not separator:
        _refuse_missing_slash(name)
        return False
    if scheme not in URL_SCHEMES:
        choices = ", ".join(f"{one}://" for one in URL_SCHEMES)
        raise ValueError(f"location of scheme {scheme}://: expected a local path, {choices}")
    _refuse_characters(name, scheme)
    parts = urlsplit(name)
    if "@" in parts.netloc or parts.query:
        # The text is not repeated: it would put the secret in a log.
        raise ValueError(
            f"location {scheme}://...: credentials and options do not belong into a URL; set the"
            " provider's environment variables (AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, ...)"
        )
    if not parts.netloc:
        raise ValueError(f"location {name}: names no bucket")
    # The client would refuse empty ones, and resolve the others.
    if {"", ".", ".."} & set(parts.path.removesuffix("/").split("/")[1:]):
        raise ValueError(
            f"location {name}: a part of the path is empty, '.' or '..'; expected"
            f" {scheme}://bucket/prefix with single slashes"
        )
    return True


def is_spoilt_url(path: str) -> bool:
    """Return whether a `Path` was made of a URL, of which it left one slash."""
    first, _, rest = path.partition("/")
    begin = _BEGIN.fullmatch(first)
    return begin is not None and (bool(rest) or begin[1].lower() in URL_SCHEMES)


def _refuse_characters(name: str, scheme: str) -> None:
    """Refuse what a client, or a gateway, would read as something else than a name."""
    there = {"a '#'": "#" in name, "a backslash": "\\" in name}
    there["a space in the bucket's name"] = " " in name.split("/")[2]
    there["a character that cannot be printed"] = not name.isprintable()
    for what in (what for what, is_there in there.items() if is_there):
        # Nor is this one repeated: what stands behind a '#' may be a secret.
        raise ValueError(f"location {scheme}://...: holds {what}, which a URL cannot; leave it out")


def _refuse_missing_slash(name: str) -> None:
    """Refuse what would silently be a folder called `s3:`."""
    begin = cut_short(name, URL_SCHEMES)
    if begin is None:
        return
    scheme, slash = begin.groups()
    known = scheme.lower() if scheme.lower() in URL_SCHEMES else URL_SCHEMES[0]
    raise ValueError(
        f"location {scheme}:{slash}...: neither a URL nor a local path; expected"
        f" {known}://bucket/prefix, or ./{scheme}:{slash}... for a folder of that name"
    )
