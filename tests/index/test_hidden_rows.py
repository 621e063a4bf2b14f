"""Removed documents: no search finds them, and others take their places."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from index_stores import brute_force, clustered_keys, make_store, publish

from knnstore.datastore.removed import joined, load_removed, save_removed
from knnstore.datastore.rowranges import RowRanges
from knnstore.datastore.store import Datastore
from knnstore.errors import CorruptStoreError, UnfinishedError
from knnstore.indexes.ivfpq.quantiser import load_training_errors
from knnstore.indexes.ivfpq.sample import choose_rows
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.indexes.ivfpq.train import divide
from knnstore.indexes.registry import open_index
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.scheduling import Job


def index(store, **options):
    return build_index(store, IndexOptions(**options), Job())


def remove(store, documents):
    """The store without some documents: ``{segment: [numbers]}``."""
    documents = {name: np.array(numbers) for name, numbers in documents.items()}
    name = save_removed(store.root, joined(store.removed, documents), None)
    publish(store.root, replace(store.manifest, removed=name), "remove", "for a test")
    return Datastore(store.root)


@pytest.fixture
def many(tmp_path):
    """Two segments of 2000 and 700 keys in documents of 100, and 40 queries."""
    keys = clustered_keys(2740, 16)
    store = make_store(tmp_path / "s.knnstore", [keys[:2000], keys[2000:2700]], queries=keys[2700:], document_rows=100)
    return store, keys[2700:]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.data())
def test_row_ranges_hold_the_rows_of_their_documents_and_no_others(tokens, data):
    tokens = np.array(tokens)
    first = np.cumsum(tokens) - tokens
    chosen = np.array(sorted(data.draw(st.sets(st.integers(0, len(tokens) - 1)))), np.int64)
    ranges = RowRanges.of_documents(first, tokens, chosen)
    hidden = {row for document in chosen for row in range(first[document], first[document] + tokens[document])}
    rows = np.arange(tokens.sum() + 2)
    assert set(rows[ranges.contains(rows)]) == hidden
    assert ranges.rows == len(hidden)
    assert (ranges.begins[1:] > ranges.ends[:-1]).all()  # neighbours were joined
    begin = data.draw(st.integers(0, int(tokens.sum())))
    outside = ranges.outside(begin, int(tokens.sum()))
    expected = [row for row in range(begin, int(tokens.sum())) if row not in hidden]
    assert (expected if outside is not None else list(range(begin, int(tokens.sum())))) == expected
    assert outside is None or outside.tolist() == expected


@pytest.mark.parametrize("method", ["lists", "exact", "quantised", "reranked"])
def test_every_way_of_searching_skips_what_is_removed_and_still_finds_k(many, method):
    store, queries = many
    index(store, nlist=16)
    store = remove(Datastore(store.root), {"0000": [0, 3, 4, 19], "0001": [6]})
    hidden = np.zeros(2700, np.bool_)
    for document in (0, 3, 4, 19, 26):
        hidden[100 * document : 100 * document + 100] = True
    distances = np.where(hidden, np.inf, brute_force(store, queries))
    arguments = {"method": "quantised", "rerank": 30} if method == "reranked" else {"method": method}
    found = Searcher(store).search(queries, 100, 16, rows=True, **arguments)
    assert not hidden[found.rows].any()
    assert (found.rows >= 0).all()
    assert all(len(set(row)) == 100 for row in found.rows)
    if method != "quantised":
        np.testing.assert_allclose(found.distances, np.sort(distances, axis=1)[:, :100], rtol=1e-4, atol=2e-3)


def test_thresholds_are_set_from_what_is_left_of_a_list(tmp_path):
    """Enough keys a query that thresholds are set; half of them are hidden, in documents of one cluster each."""
    keys = clustered_keys(20_600, 8, clusters=3)
    store = make_store(tmp_path / "s", [keys[:20_000]], chunk_rows=4096, document_rows=50)
    index(store, nlist=16)
    store = remove(Datastore(store.root), {"0000": range(0, 400, 2)})
    found = Searcher(store).search(keys[20_000:], 64, 16, rows=True)
    left = (np.arange(20_000) // 50 % 2).astype(bool)
    truth = np.sort(np.where(left, brute_force(store, keys[20_000:]), np.inf), axis=1)[:, :64]
    np.testing.assert_allclose(found.distances, truth, rtol=1e-4, atol=2e-3)


def test_with_all_but_a_few_keys_removed_those_few_are_found(many):
    store, queries = many
    index(store, nlist=16)
    store = remove(Datastore(store.root), {"0000": range(20), "0001": range(1, 7)})
    for method in ("lists", "exact", "quantised"):
        found = Searcher(store).search(queries, 150, 16, method=method, rows=True)
        assert (np.sort(found.rows, axis=1)[:, 50:] == np.arange(2000, 2100)).all()
        assert (found.rows == -1).sum() == 50 * len(queries)
    assert store.live_rows == 100


def test_the_quantisers_are_trained_on_what_is_not_removed(many):
    store = remove(many[0], {"0000": range(0, 20, 2)})
    left, others = choose_rows(store, store.live_rows, 0)
    assert left.tolist() == [row for row in range(2000) if row // 100 % 2]
    assert others.tolist() == [*range(700)]
    assert index(store).plan.removed == store.manifest.removed


def test_a_new_segment_gets_lists_of_its_own_and_nothing_else_is_touched(many, bytes_of):
    both, queries = many
    manifest = both.manifest
    publish(both.root, replace(manifest, segments=("0000",)), "restore", "for a test")
    first = index(Datastore(both.root), nlist=16)
    before = {name: data for name, data in bytes_of(both.root).items() if name != "knnstore.json"}
    publish(both.root, replace(Datastore(both.root).manifest, segments=("0000", "0001")), "ingest", "for a test")
    with pytest.raises(UnfinishedError, match=r"700 keys of .* are not in its index yet.*adds them"):
        Searcher(Datastore(both.root))
    second = index(Datastore(both.root))
    assert (second.name, second.new_rows, second.rows) == (first.name, 700, 2700)
    assert first.drift is None
    assert 0.85 < second.drift < 1.15  # the same clusters
    errors = load_training_errors(open_index(both.root, first.name))
    assert second.drift * errors.unseen > 1.2 * errors.seen  # keys that were trained on are known better than any
    after = bytes_of(both.root)
    assert {name: after[name] for name in before} == before
    assert {name.split("/")[3] for name in after.keys() - before.keys() - {"knnstore.json"}} == {"0001"}
    store = Datastore(both.root)
    found = Searcher(store).search(queries, 50, 16, rows=True)
    truth = np.sort(brute_force(store, queries), axis=1)[:, :50]
    np.testing.assert_allclose(found.distances, truth, rtol=1e-4, atol=2e-3)


def test_keys_unlike_those_trained_on_are_said_to_drift(tmp_path):
    keys = clustered_keys(3000, 16)
    store = make_store(tmp_path / "s", [keys[:2000], 5 * clustered_keys(1000, 16, seed=7)])
    publish(store.root, replace(store.manifest, segments=("0000",)), "restore", "for a test")
    index(Datastore(store.root), nlist=16)
    publish(store.root, replace(Datastore(store.root).manifest, segments=("0000", "0001")), "ingest", "for a test")
    assert index(Datastore(store.root)).drift > 2


@pytest.mark.parametrize(("rows", "nlist", "kept_back"), [
    (255, 1, 0), (256, 1, 16), (10_000, 64, 624), (163_840, 4096, 4096), (10**7, 4096, 4096), (300, 300, 0),
    (1000, 980, 16),
])  # fmt: skip
def test_a_sixteenth_of_the_sample_is_kept_back_in_stretches_spread_evenly(rows, nlist, kept_back):
    seen, unseen = divide(rows, nlist)
    assert len(unseen) == kept_back
    assert len(seen) >= nlist
    assert np.array_equal(np.sort(np.concatenate([seen, unseen])), np.arange(rows))
    starts = unseen[:: kept_back // 16] if kept_back else []
    assert np.array_equal(starts, np.arange(16) * rows // 16 if kept_back else [])


def test_a_damaged_table_of_removed_documents_hides_nothing_silently(many):
    store = remove(many[0], {"0000": [1]})
    path = store.root / "removed" / f"{store.manifest.removed}.parquet"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CorruptStoreError, match="the table of removed documents, is damaged"):
        _ = Datastore(store.root).live_rows
    path.unlink()
    with pytest.raises(CorruptStoreError, match="can't be read"):
        load_removed(store.root, store.manifest.removed)
