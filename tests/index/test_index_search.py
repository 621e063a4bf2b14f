"""What a search finds, against brute force in float64."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from index_stores import brute_force, clustered_keys, make_store, stored_keys

from knnstore.datastore.store import Datastore
from knnstore.errors import NumericsError, UnfinishedError, UsageError
from knnstore.indexes.exact import exact_search
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.neighbours import ABSENT
from knnstore.planning import Lookup
from knnstore.scheduling import Job


def indexed(store, **options):
    build_index(store, IndexOptions(**options), Job())
    return Datastore(store.root)


def assert_nearest(neighbours, store, distances, k):
    """The neighbours are the k smallest of ``distances`` (queries, rows), inf where a key can't be found."""
    values = stored_keys(store)[1]
    best = np.sort(np.pad(distances, ((0, 0), (0, k)), constant_values=np.inf), axis=1)[:, :k]
    np.testing.assert_allclose(neighbours.distances, best, rtol=1e-4, atol=2e-3)
    absent = np.isinf(best)
    assert (neighbours.rows[absent] == ABSENT).all()
    assert (neighbours.values[absent] == ABSENT).all()
    rows = np.where(absent, 0, neighbours.rows)
    theirs = np.take_along_axis(distances, rows, 1)
    np.testing.assert_allclose(theirs[~absent], best[~absent], rtol=1e-4, atol=2e-3)
    assert (values[rows][~absent] == neighbours.values[~absent]).all()
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in neighbours.rows)


def probed_distances(searcher, store, queries, nprobe):
    """Brute force with inf for the keys outside the probed lists."""
    distances = brute_force(store, queries)
    list_of = np.empty(distances.shape[1], np.int64)
    for part in searcher._parts:
        rows = part.store_rows(0, int(part.offsets[-1]))
        list_of[rows] = np.repeat(np.arange(searcher.plan.nlist), np.diff(part.offsets))
    inside = (searcher.probe(queries, nprobe)[:, :, None] == list_of).any(axis=1)
    return np.where(inside, distances, np.inf)


@pytest.mark.parametrize("key_dtype", ["float16", "int8"])
def test_the_join_is_brute_force_within_the_probed_lists(tmp_path, key_dtype):
    keys = clustered_keys(3080, 16)
    store = make_store(tmp_path / "s", [keys[:2000], keys[2000:3000]], key_dtype=key_dtype)
    store = indexed(store, nlist=32)
    searcher, queries = Searcher(store), keys[3000:]
    for k, nprobe in [(1, 1), (10, 4), (64, 12), (300, 32), (1100, 3)]:
        found = searcher.search(queries, k, nprobe, rows=True)
        assert_nearest(found, store, probed_distances(searcher, store, queries, nprobe), k)
        reranked = searcher.search(queries, k, nprobe, method="quantised", rerank=3000 // k + 1, rows=True)
        np.testing.assert_allclose(reranked.distances, found.distances, rtol=1e-4, atol=2e-3)


def test_thresholds_from_the_sampled_heads_lose_no_neighbour(tmp_path):
    """Enough keys a query that thresholds are set, and few queries that the three deviations miss are redone."""
    keys = clustered_keys(20_600, 8, clusters=3)
    store = indexed(make_store(tmp_path / "s", [keys[:20_000]], chunk_rows=4096), nlist=16)
    found = Searcher(store).search(keys[20_000:], 64, 16, rows=True)
    assert_nearest(found, store, brute_force(store, keys[20_000:]), 64)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.tuples(st.integers(1, 400), st.integers(1, 6)), st.integers(1, 500), st.sampled_from([1, 3, 1000]), st.data())
def test_any_small_store_is_searched_as_brute_force_would(tmp_path_factory, shape, k, distinct, data):
    rows, dimension = shape
    cut = data.draw(st.integers(0, rows - 1))
    keys = clustered_keys(distinct, dimension, seed=rows)[np.arange(rows) % distinct]
    segments = [keys[:cut], keys[cut:]] if cut else [keys]
    store = indexed(make_store(tmp_path_factory.mktemp("any") / "s", segments, chunk_rows=64))
    queries = clustered_keys(5, dimension, seed=1)
    searcher = Searcher(store)
    truth = brute_force(store, queries)
    assert_nearest(searcher.search(queries, k, searcher.plan.nlist, rows=True), store, truth, k)
    assert_nearest(searcher.search(queries, k, method="exact", rows=True), store, truth, k)


def test_little_memory_means_more_passes_and_the_same_neighbours(store):
    queries = clustered_keys(700, 16, seed=5)
    for search in (lambda **more: exact_search(store, queries, 50, rows=True, **more), Searcher(indexed(store)).search):
        arguments = {} if search.__name__ == "<lambda>" else {"queries": queries, "k": 50, "rows": True}
        ample, scant = search(**arguments), search(**arguments, memory=2**27 + 10**6)
        np.testing.assert_allclose(ample.distances, scant.distances, rtol=1e-5, atol=1e-4)
        assert (ample.rows == scant.rows).mean() > 0.999


def test_equal_keys_come_in_the_order_of_the_store_when_searched_exactly(tmp_path):
    store = make_store(tmp_path / "s", [np.ones((300, 4), np.float32)])
    found = exact_search(store, np.ones((2, 4), np.float32), 7, rows=True)
    assert found.rows.tolist() == [list(range(7))] * 2
    assert not found.distances.any()


def test_codes_alone_find_most_of_what_the_keys_find(store):
    searcher = Searcher(indexed(store, pq_bytes=16))
    queries = clustered_keys(2740, 16)[2700:]
    exactly, coded = (searcher.search(queries, 50, 64, method=m, rows=True).rows for m in ("lists", "quantised"))
    shared = np.mean([len(np.intersect1d(a, b)) / 50 for a, b in zip(exactly, coded, strict=True)])
    assert shared > 0.7


@pytest.mark.parametrize("key_dtype", ["float16", "int8"])
def test_a_query_looked_up_by_codes_finds_what_the_lists_hold_if_re_ranked_deep_enough(tmp_path, key_dtype):
    keys = clustered_keys(3008, 16)
    store = indexed(make_store(tmp_path / "s", [keys[:2000], keys[2000:3000]], key_dtype=key_dtype), nlist=32)
    searcher, queries = Searcher(store), keys[3000:]
    for k, nprobe in [(1, 1), (10, 4), (300, 32), (1100, 3)]:
        coded = searcher.search(queries, k, nprobe, method="quantised", rerank=3000 // k + 1, rows=True)
        assert_nearest(coded, store, probed_distances(searcher, store, queries, nprobe), k)


@pytest.mark.parametrize(("key_dtype", "removed"), [("float16", False), ("int8", False), ("float16", True)])
def test_the_join_on_a_device_finds_what_numpy_finds(tmp_path, switch_kernel_off, key_dtype, removed):
    """On CPU tensors: the same products, so the same distances, values and rows to the last bit."""
    switch_kernel_off()
    keys = clustered_keys(20_200, 8, clusters=3)
    segments = [keys[:15_000], keys[15_000:20_000]]
    store = make_store(tmp_path / "s", segments, key_dtype=key_dtype, chunk_rows=4096, document_rows=500)
    store = indexed(store, nlist=16)
    if removed:
        store = store.masked({"0000": np.array([3, 8]), "0001": np.array([0])})
    queries = keys[20_000:]
    for k, nprobe, method in [(64, 16, "lists"), (7, 1, "lists"), (64, 5, "quantised"), (3000, 3, "lists")]:
        told = []
        expected = Searcher(store).search(queries, k, nprobe, method=method, rows=True)
        device = Searcher(store, device=torch.device("cpu"))
        found = device.search(queries, k, nprobe, method=method, rows=True, progress=told.append)
        np.testing.assert_array_equal(found.distances, expected.distances)
        np.testing.assert_array_equal(found.rows, expected.rows)
        np.testing.assert_array_equal(found.values, expected.values)
        assert sum(told) == len(queries) * nprobe


def test_few_candidates_by_their_codes_are_nearly_the_nearest(store):
    searcher, queries = Searcher(indexed(store, pq_bytes=8)), clustered_keys(2706, 16)[2700:]
    exactly = searcher.search(queries, 20, 16, rows=True).rows
    coded = searcher.search(queries, 20, 16, method="quantised", rerank=4, rows=True).rows
    assert np.mean([len(np.intersect1d(a, b)) / 20 for a, b in zip(exactly, coded, strict=True)]) > 0.9


def test_a_query_is_looked_up_in_the_faster_way(store, monkeypatch):
    searcher, query = Searcher(indexed(store)), clustered_keys(1, 16, seed=5)
    exact = searcher.search(query, 10, 8, rows=True)
    assert searcher.lookup(10, 8).rerank == 0
    assert (searcher.search(query, 10, 8, method="auto", rows=True).rows == exact.rows).all()
    monkeypatch.setattr("knnstore.indexes.ivfpq.search.choose_lookup", lambda *_, **__: Lookup(3, 1e-3, 1))
    asked = []
    monkeypatch.setattr("knnstore.indexes.ivfpq.search.look_up_codes", lambda *a, **k: asked.append(a) or exact)
    searcher.search(query, 10, 8, method="auto", rows=True)
    assert [arguments[-2:] for arguments in asked] == [(10, 3)]


def test_no_queries_give_no_neighbours(store):
    none = np.empty((0, 16), np.float32)
    searcher = Searcher(indexed(store))
    for method in ("lists", "quantised", "exact"):
        assert searcher.search(none, 5, method=method, rows=True).rows.shape == (0, 5)


def test_progress_counts_every_query_and_list(store):
    done = []
    Searcher(indexed(store)).search(clustered_keys(10, 16), 5, 7, progress=done.append)
    assert sum(done) == 70


def test_queries_that_do_not_fit_are_refused_in_one_sentence(store):
    with pytest.raises(UnfinishedError, match=r"knnstore\.index"):
        Searcher(store)
    searcher, queries = Searcher(indexed(store)), np.zeros((3, 16), np.float32)
    with pytest.raises(UsageError, match=r"float32 \(n, 16\)"):
        searcher.search(np.zeros((3, 15), np.float32), 5)
    with pytest.raises(UsageError, match="float64"):
        searcher.search(queries.astype(np.float64), 5)
    with pytest.raises(NumericsError, match="query 1 of 3"):
        searcher.search(np.where(np.arange(3)[:, None] == 1, np.nan, queries).astype(np.float32), 5)
    for wrong in ({"k": 0}, {"k": 5, "nprobe": 0}, {"k": 5, "method": "x"}, {"k": 5, "rerank": 2}):
        with pytest.raises(UsageError):
            searcher.search(queries, **wrong)
