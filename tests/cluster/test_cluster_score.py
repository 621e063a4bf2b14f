"""Shards of an index, searched apart and merged, answer as the whole: the same bits, ties included."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from make_keys import ClusteredKeys, make_store

from knnstore.datastore.store import Datastore
from knnstore.errors import MismatchError
from knnstore.indexes.compute.tiles import squared_distances
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.lm.forward import key_model
from knnstore.lm.scoring import ScoredTokens
from knnstore.lm.spec import LmSpec
from knnstore.scheduling import Job, SerialRunner
from knnstore.scoring import batches, shards
from knnstore.scoring.batches import BatchesTask, score_batches, scored_parts
from knnstore.scoring.shards import NearestOfShards, ShardTask, SharedSearch, list_ranges, search_shard, search_sharded
from knnstore.windows import cut_windows

DIMENSION, K, NPROBE = 16, 300, 12


class ManyWorkers(SerialRunner):
    """As many shards as for five workers, answered in another order than asked."""

    workers = 5

    def run(self, function, tasks):
        for task in reversed(list(tasks)):
            yield pickle.loads(pickle.dumps(function(pickle.loads(pickle.dumps(task)))))

    def run_shared(self, function, shared, tasks):
        for task in reversed(list(tasks)):
            yield function(shared, task)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    made = make_store(tmp_path_factory.mktemp("sharded") / "keys", 6000, dimension=DIMENSION)
    build_index(made, IndexOptions(nlist=64), Job())
    return Datastore(made.root)


@pytest.fixture(scope="module")
def queries():
    return ClusteredKeys(DIMENSION).queries(3, 400)


def sharded(store, queries, method="lists", runner=None):
    searcher = Searcher(store)
    return search_sharded(
        store,
        searcher,
        queries,
        K,
        NPROBE,
        method=method,
        memory=2**30,
        runner=runner or ManyWorkers(),
        advance=lambda _: None,
    )


@pytest.mark.parametrize("method", ["lists", "quantised"])
def test_shards_answer_as_the_whole(store, queries, method, monkeypatch):
    monkeypatch.setattr(shards, "_MOST_QUERIES", 150)
    whole = Searcher(store).search(queries, K, NPROBE, method=method)
    parts = sharded(store, queries, method)
    np.testing.assert_array_equal(parts.distances, whole.distances)
    np.testing.assert_array_equal(parts.values, whole.values)


def test_fewer_keys_than_wanted_are_padded_as_by_the_whole(store, queries):
    searcher = Searcher(store).within(0, 1)
    few = searcher.search(queries[:5], 1000, 1)
    merge = NearestOfShards(5, 1000)
    merge.add(0, few.distances, few.values.astype(np.uint32))
    merged = merge.neighbours()
    np.testing.assert_array_equal(merged.distances, few.distances)
    np.testing.assert_array_equal(merged.values, few.values)


@given(
    st.lists(st.lists(st.integers(0, 3), max_size=6).map(sorted), min_size=1, max_size=4),
    st.randoms(),
    st.integers(1, 6),
)
def test_among_equal_distances_the_earlier_shard_and_place_go_first(found, random, k):
    everything = sorted(
        (distance, shard, place)
        for shard, distances in enumerate(found)
        for place, distance in enumerate(distances[:k])
    )
    merge = NearestOfShards(1, k)
    order = list(range(len(found)))
    random.shuffle(order)
    for shard in order:
        distances = np.full((1, k), np.inf, np.float32)
        distances[0, : len(found[shard][:k])] = found[shard][:k]
        merge.add(shard, distances, np.arange(k, dtype=np.uint32)[None] + 10 * shard)
    merged = merge.neighbours()
    best = everything[:k]
    assert merged.values[0].tolist() == [10 * shard + place for _, shard, place in best] + [-1] * (k - len(best))
    assert merged.distances[0, : len(best)].tolist() == [distance for distance, _, _ in best]


@given(st.lists(st.integers(0, 50), min_size=1, max_size=40).filter(any), st.integers(1, 10))
def test_ranges_of_lists_cover_each_list_once(sizes, count):
    ranges = list_ranges(np.array(sizes), count)
    assert [number for first, last in ranges for number in range(first, last)] == list(range(len(sizes)))
    assert len(ranges) <= count


def test_a_distance_does_not_depend_on_what_else_is_in_the_product():
    generator = torch.Generator().manual_seed(0)
    queries, keys = torch.randn(70, 64, generator=generator), torch.randn(90, 64, generator=generator)
    whole = squared_distances(queries, keys)
    for m, t in [(1, 90), (70, 1), (1, 1), (3, 5), (15, 17), (16, 16), (69, 89)]:
        assert torch.equal(squared_distances(queries[:m], keys[:t]), whole[:m, :t])


@pytest.fixture(scope="module")
def lm():
    return key_model(LmSpec("wiki-lm", dtype="float32", device="cpu"))


def lm_parts(lm, runner):
    """What the LM says of four documents, by rows."""
    tokens = np.array([400, 550, 25, 70])
    windows = cut_windows(np.cumsum(tokens) - tokens, tokens, context=64, stride=32)
    ids = np.random.default_rng(0).integers(1, 8192, tokens.sum()).astype(np.uint32)

    def read(document, begin, end):
        return ids[tokens[:document].sum() + begin : tokens[:document].sum() + end]

    parts = list(scored_parts(lm, "ffn-input", windows, read, 512, sources=None, runner=runner))
    order = np.argsort(np.concatenate([part.rows for part in parts]))
    columns = {name: np.concatenate([getattr(part, name) for part in parts])[order] for name in ScoredTokens.__slots__}
    return len(parts), columns


def test_the_lm_s_batches_scored_by_workers_say_what_one_machine_says(lm, monkeypatch):
    monkeypatch.setattr(batches, "_TASK_TOKENS", 600)  # two batches a task
    (batch_count, here), (task_count, there) = lm_parts(lm, None), lm_parts(lm, ManyWorkers())
    assert 3 <= task_count < batch_count
    assert here["rows"].tolist() == list(range(1045))
    for name, column in here.items():
        np.testing.assert_array_equal(there[name], column, err_msg=name)


def test_a_worker_with_another_lm_is_refused(lm):
    other = replace(lm.loaded.identity, weights="0" * 64)
    with pytest.raises(MismatchError, match="has another LM at wiki-lm than the scoring command"):
        score_batches(BatchesTask(LmSpec("wiki-lm", dtype="float32", device="cpu"), other, (), {}))


def test_a_store_that_changed_meanwhile_is_refused(store, queries):
    task = ShardTask(str(store.root), 999, 0, 0, 4, 0, 10, K, 4, "lists", 2**30)
    with pytest.raises(MismatchError, match=r"changed since the search began \(state 999"):
        search_shard(SharedSearch(queries, ()), task)
