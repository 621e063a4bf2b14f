"""The join by many lists in a call: what is mapped at a time is bounded, and the answer doesn't depend on it."""

import numpy as np
import pytest
from index_stores import clustered_keys, make_store

from knnstore.datastore.store import Datastore
from knnstore.indexes.compute.choice import host_engine
from knnstore.indexes.ivfpq.batch import Batch
from knnstore.indexes.ivfpq.scan import scan_lists
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.scheduling import Job

NPROBE, LIMIT = 12, 5000  # bytes


@pytest.fixture
def searcher(tmp_path):
    """Two segments in 40 lists of some 2,400 bytes."""
    keys = clustered_keys(6000, 16)
    store = make_store(tmp_path / "s", [keys[:4000], keys[4000:]], key_dtype="int8")
    build_index(store, IndexOptions(nlist=40), Job())
    return Searcher(Datastore(store.root))


@pytest.fixture
def queries():
    return clustered_keys(64, 16, seed=5)


@pytest.mark.parametrize("share", [1 / 16, 1.0])
def test_the_whole_lists_of_a_call_are_bounded_whatever_share_of_them_is_read(searcher, queries, share, monkeypatch):
    monkeypatch.setattr("knnstore.indexes.ivfpq.scan._BYTES_AT_ONCE", LIMIT)
    top_k, groups = host_engine().top_k(np.full(len(queries), np.inf, np.float32), 50, largest_tag=6000), []
    monkeypatch.setattr(type(top_k), "offer_lists", lambda self, given, probes: groups.extend(given))
    batch = Batch(queries, searcher.probe(queries, NPROBE))
    scan_lists(top_k, batch, searcher._lists("lists", "rows"), lambda pairs: None, share=share)
    calls = [np.concatenate([lists.lists for lists in group]) for group in groups]
    sizes = searcher.list_sizes() * 16
    assert len(calls) > 3
    assert all(sizes[np.unique(numbers)].sum() < LIMIT + sizes.max() for numbers in calls)
    np.testing.assert_array_equal(np.unique(np.concatenate(calls)), np.unique(batch.probed))


def test_how_much_is_read_in_a_call_changes_nothing(searcher, queries, monkeypatch):
    told = []
    at_once = searcher.search(queries, 50, NPROBE, rows=True)
    monkeypatch.setattr("knnstore.indexes.ivfpq.scan._BYTES_AT_ONCE", LIMIT)
    in_many = searcher.search(queries, 50, NPROBE, rows=True, progress=told.append)
    np.testing.assert_array_equal(at_once.distances, in_many.distances)
    np.testing.assert_array_equal(at_once.rows, in_many.rows)
    assert len(told) > 3
    assert sum(told) == len(queries) * NPROBE
