"""The fixture that the tests of the index share."""

import pytest
from index_stores import clustered_keys, make_store


@pytest.fixture
def store(tmp_path):
    """Two segments of 2000 and 700 keys of 16 dimensions, with 40 held-out queries."""
    keys = clustered_keys(2740, 16)
    return make_store(tmp_path / "s.knnstore", [keys[:2000], keys[2000:2700]], queries=keys[2700:])
