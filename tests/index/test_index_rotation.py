"""Rotations before the codes: what they keep, and that everything downstream finds the same things through them."""

import faiss
import numpy as np
import pytest
from index_stores import clustered_keys, make_store

from knnstore.datastore.store import Datastore
from knnstore.errors import UsageError
from knnstore.indexes.compute.rotation import rotate
from knnstore.indexes.ivfpq.faissfile import write_faiss
from knnstore.indexes.ivfpq.plan import IvfPqPlan
from knnstore.indexes.ivfpq.quantiser import load_quantiser
from knnstore.indexes.ivfpq.rotation import optimised_axes, principal_axes
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.indexes.plan import SegmentReference
from knnstore.indexes.registry import open_index
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.indexing.plan import dry_run
from knnstore.living.compact import CompactOptions, compact
from knnstore.living.remove import remove
from knnstore.planning import parse_rotation
from knnstore.records import fingerprint, from_json, to_json
from knnstore.scheduling import Job


def mixed_keys(rows):
    """Keys whose variance lies in a few directions, none of them a dimension's: float32 (rows, 16)."""
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(16, 16)))
    return ((clustered_keys(rows, 16) * 0.8 ** np.arange(16)) @ turn).astype(np.float32)


def indexed(store, **options):
    build_index(store, IndexOptions(nlist=16, **options), Job())
    return Datastore(store.root)


def recall(store, queries):
    searcher = Searcher(store)
    true = searcher.search(queries, 50, method="exact", rows=True).rows
    coded = searcher.search(queries, 50, 16, method="quantised", rows=True).rows
    return np.mean([len(np.intersect1d(a, b)) / 50 for a, b in zip(true, coded, strict=True)])


@pytest.mark.parametrize("make", [lambda x: principal_axes(x, 6), lambda x: optimised_axes(x, 6, 3, 0)])
def test_axes_are_orthonormal_and_hold_most_of_the_variance(make):
    points = mixed_keys(3000)
    axes = make(points)
    np.testing.assert_allclose(axes.T @ axes, np.eye(6), atol=1e-4)
    assert rotate(points, axes).var(axis=0).sum() > 0.75 * points.var(axis=0).sum()


def test_rotated_codes_of_as_many_bytes_find_more_and_lookups_agree_with_the_join(tmp_path):
    keys = mixed_keys(3040)
    plain, rotated = (make_store(tmp_path / name, [keys[:2000], keys[2000:3000]]) for name in "pr")
    queries = keys[3000:]
    plain = indexed(plain, pq_bytes=4)
    rotated = indexed(rotated, pq_bytes=4, rotation="PCA8")
    assert recall(rotated, queries) > recall(plain, queries)
    searcher, few = Searcher(rotated), queries[:4]
    looked_up = searcher.search(few, 20, 16, method="quantised", rerank=3, rows=True)
    joined = searcher.search(queries, 20, 16, method="quantised", rerank=3, rows=True)
    assert (looked_up.rows == joined.rows[:4]).mean() > 0.98
    exact = Searcher(plain).search(few, 20, 16, rows=True)
    np.testing.assert_allclose(searcher.search(few, 20, 16, rows=True).distances, exact.distances, rtol=1e-5)


def test_codes_of_a_rotated_index_outlive_a_removal_and_a_compaction(tmp_path):
    """The quantisers are made anew of what is left, and so are the axes."""
    keys = mixed_keys(2040)
    store = make_store(tmp_path / "s.knnstore", [keys[:2000]], document_rows=100, chunk_rows=256)
    store = indexed(store, pq_bytes=4, rotation="PCA8")
    before = load_quantiser(open_index(store.root, store.manifest.index)).axes
    store.close()
    remove(store.root, ["0.txt", "500.txt", "1100.txt"])
    compact(store.root, CompactOptions(), Job())
    store = Datastore(store.root)
    axes = Searcher(store).quantiser.axes
    assert store.rows == 1700
    assert axes.shape == (16, 8)
    assert not np.array_equal(axes, before)
    assert recall(store, keys[2000:]) > 0.5


def test_a_rotated_index_goes_to_faiss_whole(tmp_path):
    keys = mixed_keys(1040)
    store = indexed(make_store(tmp_path / "s", [keys[:1000]]), rotation="OPQ", pq_bytes=8)
    write_faiss(store, tmp_path / "f", lambda _: None)
    index = faiss.read_index(str(tmp_path / "f"))
    faiss.extract_index_ivf(index).nprobe = 16
    found = index.search(keys[1000:], 20)[1]
    mine = Searcher(store).search(keys[1000:], 20, 16, method="quantised", rows=True).rows
    assert np.mean([len(np.intersect1d(a, b)) / 20 for a, b in zip(found, mine, strict=True)]) > 0.97


def test_a_rotation_that_is_none_is_refused_and_another_one_is_another_index(tmp_path):
    assert parse_rotation("OPQ", 16) == ("OPQ", 16)
    assert parse_rotation("PCA8", 16) == ("PCA", 8)
    for wrong in ("PCA17", "pca8", "PCA0", "RR8", ""):
        with pytest.raises(UsageError, match="rotation="):
            parse_rotation(wrong, 16)
    store = indexed(make_store(tmp_path / "s", [mixed_keys(600)]))
    assert dry_run(store, IndexOptions(nlist=16), Job()).seconds is None
    assert dry_run(store, IndexOptions(nlist=16, rotation="PCA8"), Job()).seconds is not None


def test_a_plan_without_a_rotation_is_the_record_that_it_was_before_there_were_any():
    plan = IvfPqPlan(1, 4, 1, 2, 40, 0, 4, 8, "int8", (SegmentReference("0000", "f", 40, 40),))
    assert "rotation" not in to_json(plan)
    assert from_json(IvfPqPlan, to_json(plan), "here") == plan
    rotated = from_json(IvfPqPlan, to_json(plan) | {"rotation": "PCA4"}, "here")
    assert rotated.coded_dimension == 4
    assert fingerprint(rotated) != fingerprint(plan)
