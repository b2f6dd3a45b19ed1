"""Beginning a store again as another cache, while nothing of it is committed.

A dump that fails in its first batch leaves metadata that names its config and its teacher. They
would refuse the corrected ones, although there is nothing to lose.
"""

from __future__ import annotations

import logging

from storage.claims import live_claims
from storage.errors import IdentityError
from storage.exclusive import METADATA
from storage.layout import CLAIMS, COMMITS, DIGEST_KEY, LOG, OURS, ROOT_KEY
from storage.local import FOLDER, PARTIAL_SUFFIX
from storage.location import Location
from storage.shrinking import delete_objects

logger = logging.getLogger(__name__)


def has_commits(location: Location) -> bool:
    """Return whether anything lies where commits do; what cannot be told counts as one."""
    found = location.listing(COMMITS)
    odd = [what for what in found.odd.values() if what != FOLDER]
    return bool(odd or found.unreadable) or any(
        not key.endswith(PARTIAL_SUFFIX) for key in found.sizes
    )


def begin_again(location: Location, refusal: IdentityError) -> None:
    """Remove a store of which nothing is committed, so that another can be written.

    The caller holds the claim on the metadata. The root goes first: what a crash leaves after that
    is what it leaves of any new store.

    Args:
        location: of the store.
        refusal: why it is not the store that is to be written.

    Raises:
        IdentityError: the refusal, if there is a commit, or a dump at work on the store.
    """
    if has_commits(location):
        raise refusal
    for name, claim in live_claims(location):
        if name != str(METADATA):
            raise IdentityError(
                f"{refusal}\nIts dump is at work ({name} is held by {claim}); stop it first, or"
                " choose another location"
            ) from refusal
    logger.warning("%s\nNothing of it is committed, so it is begun again.", refusal)
    location.delete(ROOT_KEY)
    found = location.listing().sizes
    delete_objects(location, {key: size for key, size in found.items() if _is_left(key)})


def _is_left(key: str) -> bool:
    top = key.partition("/")[0]
    if top == CLAIMS:  # all but ours have expired
        return not key.startswith(f"{CLAIMS}/{METADATA.bucket}/")
    return key == DIGEST_KEY or top == LOG or bool(OURS.fullmatch(key))
