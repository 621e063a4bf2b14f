"""The fixtures that the tests of the index share."""

import pytest
from index_stores import clustered_keys, make_store

from knnstore.indexes.compute.choice import host_engine


@pytest.fixture
def store(tmp_path):
    """Two segments of 2000 and 700 keys of 16 dimensions, with 40 held-out queries."""
    keys = clustered_keys(2740, 16)
    return make_store(tmp_path / "s.knnstore", [keys[:2000], keys[2000:2700]], queries=keys[2700:])


@pytest.fixture
def switch_kernel_off(monkeypatch):
    """A function: what is opened after its call computes by the reference."""

    def switch_off():
        monkeypatch.setenv("KNNSTORE_KERNEL", "off")
        host_engine.cache_clear()

    yield switch_off
    host_engine.cache_clear()
