"""A few queries are looked up, many are joined, codes are re-ranked: three ways to one answer."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_stores import clustered_keys, make_store

from knnstore.datastore.store import Datastore
from knnstore.indexes.ivfpq.lookup import FEW
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.scheduling import Job

ROWS = 3000


@pytest.fixture(scope="module", params=["int8", "float16"])
def searcher(tmp_path_factory, request):
    keys = clustered_keys(ROWS, 24)
    root = tmp_path_factory.mktemp("lookup") / "s"
    store = make_store(root, [keys[:2000], keys[2000:]], key_dtype=request.param)
    build_index(store, IndexOptions(nlist=24), Job())
    return Searcher(Datastore(store.root))


def assert_same(one, other):
    """The same neighbours, but for those that tie with the last of them."""
    np.testing.assert_allclose(one.distances, other.distances, rtol=2e-4, atol=2e-3)
    for distances, rows, others in zip(one.distances, one.rows, other.rows, strict=True):
        alone = ~np.isin(rows, others)
        assert (distances[alone] >= distances[-1] * (1 - 4e-4) - 4e-3).all()


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 24), st.integers(1, 1500), st.integers(0, 100))
def test_looking_up_joining_and_deep_re_ranking_find_the_same(searcher, nprobe, k, seed):
    queries = clustered_keys(FEW + 3, 24, seed=seed)
    joined = searcher.search(queries, k, nprobe, rows=True)
    looked_up = searcher.search(queries[:FEW], k, nprobe, rows=True)
    deep = -(-ROWS // k)  # as deep as there are keys
    reranked = searcher.search(queries[:FEW], k, nprobe, method="quantised", rerank=deep, rows=True)
    first = type(joined)(joined.distances[:FEW], joined.values[:FEW], joined.rows[:FEW])
    assert_same(looked_up, first)
    assert_same(reranked, looked_up)


def test_a_query_looked_up_alone_finds_values_that_belong_to_its_rows(searcher):
    query = clustered_keys(1, 24, seed=7)
    found = searcher.search(query, 200, 5, rows=True)
    segments = searcher._store.segments
    values = np.concatenate([segment.values(0, segment.rows) for segment in segments])
    assert (values[found.rows[0]] == found.values[0]).all()
    assert (np.diff(found.distances[0]) >= 0).all()
    without = searcher.search(query, 200, 5)
    assert without.rows is None
    assert (without.values == found.values).all()


@pytest.mark.parametrize("count", [1, FEW + 1])
def test_fewer_than_k_are_padded_whichever_way(searcher, count):
    found = searcher.search(clustered_keys(count, 24, seed=3), ROWS, 1, rows=True)
    short = found.rows < 0
    assert short[:, -1].all()
    assert np.isinf(found.distances[short]).all()
    assert (found.values[short] == -1).all()
    assert (found.values[~short] >= 0).all()


def test_codes_of_an_empty_list_are_looked_up_like_any_others(searcher):
    searcher = searcher.within(3, 9)  # the other lists look empty
    query = clustered_keys(1, 24, seed=11)
    exact = searcher.search(query, 30, 24, rows=True)
    by_codes = searcher.search(query, 30, 24, method="quantised", rerank=100, rows=True)
    assert_same(by_codes, exact)
