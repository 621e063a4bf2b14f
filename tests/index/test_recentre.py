"""Quantisers made anew of what is left: nothing of hidden keys is in them, and searches are as good as before."""

import numpy as np
import pytest
from index_stores import clustered_keys, make_store, stored_keys

from knnstore.datastore.mapped import MappedArray
from knnstore.datastore.store import Datastore
from knnstore.indexes.ivfpq.recentre import recentre
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.scheduling import Job

KEYS = clustered_keys(3000, 16)


@pytest.fixture
def store(tmp_path):
    """Two segments of 2000 and 1000 keys in documents of 50, in 32 lists; every third document is hidden."""
    made = make_store(tmp_path / "s.knnstore", [KEYS[:2000], KEYS[2000:]], document_rows=50, chunk_rows=256)
    build_index(made, IndexOptions(nlist=32), Job())
    every = {"0000": np.arange(0, 40, 3), "0001": np.arange(0, 20, 3)}
    return Datastore(made.root).masked(every)


def recentred(searcher):
    return recentre(searcher.quantiser, searcher.parts, searcher.plan, lambda _: None)


def lists_of(searcher):
    """Each list's keys that aren't hidden, float32 (n, d), of all segments."""
    found = {}
    for part in searcher.parts:
        for number in range(searcher.plan.nlist):
            begin, end = part.bounds(number)
            kept = part.kept(begin, end)
            places = np.arange(end - begin) if kept is None else kept
            found.setdefault(number, []).append(part.keys.rows(begin, end)[places].astype(np.float32))
    return {number: np.concatenate(keys) for number, keys in found.items()}


def test_each_centroid_is_the_mean_of_its_lists_keys_but_those_kept_back(store):
    searcher = Searcher(store)
    made, errors = recentred(searcher)
    passed, kept_back = 0, []
    for number, keys in lists_of(searcher).items():
        unseen = np.arange(passed, passed + len(keys)) % 16 == 15
        passed += len(keys)
        kept_back.append((keys[unseen], np.full(unseen.sum(), number)))
        np.testing.assert_allclose(made.centroids[number], keys[~unseen].mean(axis=0), rtol=1e-5, atol=1e-5)
    keys, lists = map(np.concatenate, zip(*kept_back, strict=True))
    assert len(keys) == passed // 16
    assert errors.unseen == pytest.approx(made.errors(keys, lists, made.encode(keys, lists)).mean(), rel=1e-4)
    keys, _ = stored_keys(store)
    lists = made.assign(keys)
    assert 0 < errors.seen < 1.5 * float(made.errors(keys, lists, made.encode(keys, lists)).mean())


def test_no_hidden_key_is_read(store, monkeypatch):
    searcher, taken = Searcher(store), []
    take = MappedArray.take
    monkeypatch.setattr(MappedArray, "take", lambda self, rows: taken.append((self, rows)) or take(self, rows))
    monkeypatch.setattr(MappedArray, "rows", None)  # keys are read by no other way
    recentred(searcher)
    monkeypatch.undo()
    for part, hidden in zip(searcher.parts, store.hidden, strict=True):
        rows = np.concatenate([rows for array, rows in taken if array is part.keys])
        assert len(rows) > 100
        assert not hidden.contains(part.rows.take(rows).astype(np.int64)).any()


def test_lists_that_lost_all_their_keys_are_probed_after_all_others(tmp_path):
    keys = clustered_keys(2000, 8, clusters=10)
    made = make_store(tmp_path / "s", [keys], document_rows=1)
    build_index(made, IndexOptions(nlist=40), Job())
    (part,) = Searcher(Datastore(made.root)).parts
    lost = np.concatenate([part.store_rows(*part.bounds(number)) for number in range(12)])
    searcher = Searcher(Datastore(made.root).masked({"0000": np.sort(lost)}))
    live = searcher.parts[0].live > 0
    assert live.sum() == 28
    quantiser, _ = recentred(searcher)
    assert live[quantiser.coarse.probe(keys, 28)].all()
    assert live[quantiser.assign(keys)].all()
