"""What already lies where a cache is to be written: is it this one, and how far is it?"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from dataset.annotations import annotations_digest
from dataset.changes import annotations_note, changed_annotations
from detectors.fingerprint import config_fingerprint
from detectors.identity import dump_differences
from storage import (
    CacheError,
    CacheReader,
    CacheWriter,
    FormatError,
    IdentityError,
    read_logs,
)
from storage.restart import has_commits

from .prepare import Prepared
from .status import Status, read_status

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Existing:
    """A cache that lies at CACHE.LOCATION.

    Attributes:
        status: how far it is, and how fast it went.
        sizes: key to size, bytes, of its objects.
        differences: why it is another cache than the planned one; empty if it is that one.
        begun: whether something of it is committed; else a dump begins it again as the planned one.
    """

    status: Status
    sizes: dict[str, int]
    differences: tuple[str, ...]
    begun: bool


def look_at(prepared: Prepared) -> Existing | None:
    """Look at the cache where the planned one would lie; None where there is none.

    Raises:
        CacheError: something lies there that is no intact cache, or one that leaves out images
            which the plan does not.
    """
    location = prepared.settings.cache.location
    try:
        reader = CacheReader(location)
    except FileNotFoundError:
        return None
    begun, differences = has_commits(reader.location), tuple(_differences(prepared, reader))
    if begun and not differences:
        reader.manifest.check_excluded(prepared.excluded, location)
    return Existing(
        status=read_status(location),
        sizes=reader.location.sizes(),
        differences=differences,
        begun=begun,
    )


def require_same_cache(prepared: Prepared) -> None:
    """Refuse, before a model is loaded, to go on with the cache of other images or settings.

    The teacher's weights and the machine's numerics are compared later, by the writer.

    Raises:
        IdentityError: names each field with both values, and what changed about the images; or
            the cache leaves out images which the plan does not.
    """
    try:
        reader = CacheReader(prepared.settings.cache.location)
    except (FileNotFoundError, FormatError):
        return  # damaged metadata is for the writer to mend or to refuse
    if not has_commits(reader.location):
        return  # the writer begins another one again, and says so
    found = _differences(prepared, reader)
    if found:
        lines = "".join(f"\n  {one}" for one in found)
        raise IdentityError(f"{reader.location} is another cache than the one asked for:{lines}")
    reader.manifest.check_excluded(prepared.excluded, str(reader.location))


def note_annotations(prepared: Prepared, writer: CacheWriter) -> None:
    """Leave the digests of the annotation files in the log; warn of those that changed by now."""
    try:
        notes = read_logs(prepared.settings.cache.location)
        for number, one in enumerate(prepared.sets):
            if annotations_note(number) not in notes:
                digest = annotations_digest(one.path)
                writer.write_log(annotations_note(number), {"sha256": digest})
            warning = changed_annotations(notes, one.path, number)
            if warning:
                logger.warning("%s", warning)
    except (CacheError, OSError) as error:
        logger.warning("the annotations were not compared with the log: %s", error)


def _differences(prepared: Prepared, reader: CacheReader) -> list[str]:
    """What a config decides, compared with what a cache says of itself."""
    config = config_fingerprint(prepared.teacher_cfg)
    wanted = prepared.manifest(teacher={"config": config}, numerics={}).identity
    del wanted["numerics"]  # only a dump knows them, and the digest of the weights
    return dump_differences(reader, wanted, prepared.images, prepared.setup.augmentation)
