"""Views added to a cache, dropped from it and added again: always the bytes of one dump."""

import shutil
from pathlib import Path

from storage import drop_views
from tests.stage1_dump.conftest import IMAGES, Configure
from tests.stage1_dump.helpers import dump, store_bytes


def test_views_come_and_go_without_a_trace(reference: Path, configure: Configure) -> None:
    one_view = configure("one")
    dump(one_view)
    config = configure(VIEWS={"NUM": 2})
    store = config.with_suffix("")
    shutil.copytree(reference, store)
    drop_views(store, 1)
    assert store_bytes(store) == store_bytes(one_view.with_suffix(""))
    assert dump(config).records == len(IMAGES)
    assert store_bytes(store) == store_bytes(reference)
    three = configure(VIEWS={"NUM": 3})
    assert dump(three).records == len(IMAGES)
    drop_views(store, 2)
    assert store_bytes(store) == store_bytes(reference)
