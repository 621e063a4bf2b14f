"""An index goes along: into subsets, merges and compactions, without training, and without approximating more."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest
from index_stores import clustered_keys, make_store, publish
from killing import DyingRunner, killed_at

import knnstore.indexes.ivfpq.regrouping
from knnstore.cli.report.living import derive_text
from knnstore.datastore.history import changes
from knnstore.datastore.selection import others, sampled
from knnstore.datastore.store import Datastore
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.living.compact import CompactOptions, compact
from knnstore.living.deriving import merge, subset
from knnstore.scheduling import Job

KEYS = clustered_keys(3040, 16)
QUERIES = KEYS[3000:]


def made(root, keys, *, first=0, nlist=None, **options):
    """A store of documents of 20 keys with texts of their own, indexed if ``nlist`` is given."""
    digests = [hashlib.sha256(f"{first + number}".encode()).digest() for number in range(len(keys))]
    store = make_store(
        root, [keys], queries=QUERIES, document_rows=20, chunk_rows=256, digests=digests, key_dtype="int8", **options
    )
    if nlist:
        build_index(store, IndexOptions(nlist=nlist), Job())
    return Datastore(root)


@pytest.fixture(scope="module")
def indexed(tmp_path_factory):
    """2000 keys in 32 lists. Read only."""
    return made(tmp_path_factory.mktemp("indexed") / "a.knnstore", KEYS[:2000], nlist=32)


@pytest.fixture
def short_runs(monkeypatch):
    monkeypatch.setattr("knnstore.planning._RUN_BYTES", 1)
    monkeypatch.setattr("knnstore.planning._MOST_RUNS", 10**6)


@pytest.fixture(scope="module")
def merged(indexed, tmp_path_factory):
    """``indexed`` merged with 500 keys that have no index, in runs of a chunk; those, and the tasks that ran."""
    folder, every = tmp_path_factory.mktemp("merged"), DyingRunner()
    bare = made(folder / "c.knnstore", KEYS[2500:3000], first=2500)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("knnstore.planning._RUN_BYTES", 1)
        patched.setattr("knnstore.planning._MOST_RUNS", 10**6)
        whole = merge([bare, indexed], folder / "whole.knnstore", Job(every)).store
    return bare, whole, sorted(every.ran)


def found_in(store, **arguments):
    """Distances of the nearest 60 of all lists: (queries, 60); ties aside, they say which keys those are."""
    searcher = Searcher(store)
    return searcher.search(QUERIES, 60, searcher.plan.nlist, **arguments).distances


def test_a_subset_searches_as_the_masked_store_does(indexed, tmp_path):
    half = sampled(indexed, 0.5)
    report = subset(indexed, tmp_path / "half.knnstore", Job(), share=0.5)
    part, masked = Datastore(report.store), indexed.masked(others(indexed, half))
    np.testing.assert_allclose(found_in(part), found_in(masked), rtol=1e-3)
    assert (report.index.plan.nlist, report.index.rows) == (32, report.rows)
    assert [change.kind for change in changes(report.store)] == ["subset", "index"]
    assert report.index.check.recall >= Searcher(indexed).check.recall - 0.01
    told = derive_text(report)
    assert "index     32 lists" in told
    assert "next      knnstore score --store" in told
    again = build_index(Datastore(report.store), IndexOptions(nlist=32), Job())
    assert not again.built


def test_with_nothing_left_out_quantisers_and_codes_stay(indexed, tmp_path, bytes_of):
    report = subset(indexed, tmp_path / "all.knnstore", Job(), share=1.0)
    assert report.index.name == indexed.manifest.index
    before, after = (
        {name: data for name, data in bytes_of(root / "index").items() if "commits" not in name and "check" not in name}
        for root in (indexed.root, report.store)
    )
    assert after == before


def test_too_few_keys_for_the_lists_are_told_what_to_run(indexed, tmp_path):
    report = subset(indexed, tmp_path / "few.knnstore", Job(), share=0.05)
    assert report.index is None
    assert derive_text(report).splitlines()[-1].startswith("next      knnstore index --store")


def test_a_merge_takes_the_largest_index_and_fills_in_the_others(indexed, tmp_path):
    small = made(tmp_path / "b.knnstore", KEYS[2000:2500], first=2000, nlist=8)
    bare = made(tmp_path / "c.knnstore", KEYS[2500:3000], first=2500)
    report = merge([small, bare, indexed], tmp_path / "d.knnstore", Job())
    store = Datastore(report.store)
    assert (store.rows, report.index.plan.nlist, report.index.rows) == (3000, 32, 3000)
    np.testing.assert_allclose(found_in(store), found_in(store, method="exact"), rtol=1e-3)
    assert report.index.check.recall >= Searcher(indexed).check.recall - 0.02
    assert 0.5 < report.index.drift < 1.2  # of all keys, two thirds of which were trained on
    assert "carry over the 32 lists of a" in changes(report.store)[-1].what
    assert merge([small, bare, indexed], tmp_path / "d.knnstore", Job(DyingRunner(0))) == report


def test_stores_without_an_index_make_one_without(tmp_path):
    stores = [made(tmp_path / f"{name}.knnstore", KEYS[n : n + 500], first=n) for name, n in (("a", 0), ("b", 500))]
    report = merge(stores, tmp_path / "c.knnstore", Job())
    assert report.index is None
    assert "next      knnstore index" in derive_text(report)


@pytest.mark.usefixtures("short_runs")
def test_killed_anywhere_it_ends_with_the_same_bytes(indexed, merged, tmp_path, bytes_of):
    bare, whole, tasks = merged
    points = [5, 8, 12, 18, 25]
    assert killed_at(points, lambda runner: merge([bare, indexed], tmp_path / "d.knnstore", Job(runner))) == tasks
    assert bytes_of(tmp_path / "d.knnstore") == bytes_of(whole)


def test_the_memory_leaves_no_trace_in_the_bytes(indexed, tmp_path, bytes_of, monkeypatch):
    made_of = []
    for name, run_bytes, memory in (("one", 1, 10**9), ("two", 60_000, 2 * 10**9), ("three", 2**29, 4 * 10**9)):
        monkeypatch.setattr("knnstore.planning._RUN_BYTES", run_bytes)
        monkeypatch.setattr("knnstore.planning._MOST_RUNS", 10**6)
        made_of.append(bytes_of(subset(indexed, tmp_path / f"{name}.knnstore", Job(memory=memory), share=0.6).store))
    assert made_of[0] == made_of[1] == made_of[2]


def test_compaction_assigns_those_segments_alone_that_have_no_lists_yet(tmp_path, monkeypatch):
    store = make_store(tmp_path / "s", [KEYS[:2000], KEYS[2000:2700]], queries=QUERIES, chunk_rows=256)
    publish(store.root, replace(store.manifest, segments=("0000",)), "restore", "for a test")
    build_index(Datastore(store.root), IndexOptions(nlist=32), Job())
    state = Datastore(store.root).manifest
    publish(store.root, replace(state, segments=("0000", "0001")), "ingest", "for a test")
    assigned = []
    given = knnstore.indexes.ivfpq.regrouping.quantised_rows
    monkeypatch.setattr(
        knnstore.indexes.ivfpq.regrouping,
        "quantised_rows",
        lambda segment, *rest: assigned.append(segment.root.name) or given(segment, *rest),
    )
    compact(store.root, CompactOptions(), Job())
    assert set(assigned) == {"0001"}
    after = Datastore(store.root)
    assert (after.manifest.index, after.manifest.indexed) == (state.index, ("0002",))
    np.testing.assert_allclose(found_in(after), found_in(after, method="exact"), rtol=1e-4)
