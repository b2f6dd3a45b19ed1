"""What a local disk refuses, as errors that name store and object, and say what to do."""

from __future__ import annotations

import errno

from storage import local
from storage.errors import StoreAccessError, StoreFullError, UnreadableError
from storage.report import remedy, repair_command
from storage.resources import FULL_DISK, exhausted

_NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_IN_THE_WAY = (errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.ELOOP, errno.ENOTEMPTY)


def store_full(store: str, key: str) -> StoreFullError:
    """The error of a disk, a quota or a bucket that is used up."""
    return StoreFullError(
        f"{store}: no space left while writing {key}; free some and run again:"
        " committed shards stay and are not done twice"
    )


def unwritable(
    store: str, root: str, key: str, error: OSError
) -> StoreAccessError | StoreFullError:
    """The error of a local object that cannot be put or removed.

    Args:
        store: its name, for the message. root: its path.
        key: of the object.
        error: what the system says.
    """
    if error.errno in FULL_DISK:
        return store_full(store, key)
    if lacking := exhausted(error):
        kind = StoreFullError if error.errno == errno.EFBIG else StoreAccessError
        return kind(f"{store}: {key} cannot be written: {lacking}")
    if error.errno in _NOT_WRITABLE:
        return StoreAccessError(
            f"{store}: cannot be written ({error.strerror}: {key}); make it writable, and run again"
        )
    if error.errno in _IN_THE_WAY and (there := local.obstacle(root, key)):
        what, where = there
        if not where:
            return StoreAccessError(f"{store}: {what} lies here; choose another location")
        return StoreAccessError(
            f"{store}: {key} cannot be written: {what} lies at {where};"
            f" `{repair_command(store)}` removes it"
        )
    return StoreAccessError(
        f"{store}: {key} cannot be written ({error.strerror or error}); check the disk, and run"
        " again"
    )


def unreadable(store: str, key: str, error: OSError) -> UnreadableError | StoreAccessError:
    """The error of a local object that cannot be read; arguments as of `unwritable`."""
    if lacking := exhausted(error):  # says nothing about the object
        return StoreAccessError(f"{store}/{key}: cannot be read: {lacking}")
    is_file = not isinstance(error, local.NotAFileError)
    reason = f"cannot be read ({error.strerror})" if is_file else f"{error} lies in its place"
    lost = not is_file or error.errno == errno.EIO
    way_out = remedy(store) if lost else "make it readable, and run again"
    message = f"{store}/{key}: {reason}; {way_out}"
    return UnreadableError(message, key=key, reason=reason, lost=lost)
