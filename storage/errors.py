"""The errors that callers of the storage package catch, and what each one tells them.

Every class takes one message, so that an error survives the trip out of a data-loading worker
(PyTorch rebuilds it from its message alone).
"""

from __future__ import annotations


class CacheError(Exception):
    """Something about a teacher cache keeps it from being used."""


class FormatError(CacheError):
    """Metadata of a store does not parse, or does not match its digest."""


class VersionError(CacheError):
    """A store was written in a format version that this software does not know."""


class IdentityError(CacheError):
    """A store holds another teacher, dataset, augmentation or codec than the one asked for."""


class MissingShardError(CacheError):
    """A shard that was asked for has no commit, or one of its objects is not there to be read."""


class CorruptChunkError(CacheError):
    """Bytes read from a store do not match the CRC32C of their commit.

    Attributes:
        store: location of the store, or "" after the error has crossed a process.
        shard: "bucket/number" of the damaged shard, or "".
        array: name of the damaged array, or "".
    """

    def __init__(self, message: str, *, store: str = "", shard: str = "", array: str = "") -> None:
        super().__init__(message)
        self.store = store
        self.shard = shard
        self.array = array


class UnreadableError(CacheError):
    """What lies at a key of a local store cannot be read.

    Attributes:
        key: of the object, or "" after the error has crossed a process.
        reason: what is wrong, without the place.
        lost: whether the bytes are gone for good: something else than a file lies there, or the
            disk has lost them. Else somebody can make them readable.
    """

    def __init__(
        self, message: str, *, key: str = "", reason: str = "", lost: bool = False
    ) -> None:
        super().__init__(message)
        self.key = key
        self.reason = reason
        self.lost = lost


class ClaimLostError(CacheError):
    """Another worker holds the claim of a shard, so this one must not commit it."""


class StoreFullError(CacheError):
    """A store's disk, quota or file size is used up; what was committed before stays valid."""


class StoreAccessError(CacheError):
    """A store cannot be reached or written, or refuses a request."""


class ForkedProcessError(CacheError):
    """An object store is used in a forked process, where its client would hang."""
