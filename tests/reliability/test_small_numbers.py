"""The smallest corpora and the emptiest answers: a store of one key, a document of one token, k beyond all keys."""

import json

import numpy as np
import pytest
from faults.material import make_model, run
from index_stores import clustered_keys, make_store

from knnstore.datastore.store import Datastore
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.mixing.evidence import Evidence
from knnstore.mixing.knn import target_probabilities
from knnstore.neighbours import ABSENT, Neighbours
from knnstore.scheduling import Job
from knnstore.verification.check import verify

INGEST = ("ingest", "--corpus", "books/", "--workers", "0", "--context", "32", "--holdout", "0")
METHODS = ("lists", "quantised", "exact")


@pytest.fixture
def typed(tmp_path):
    """``typed(texts, *command)``: commands in a folder whose ``books/`` holds the texts."""
    make_model(tmp_path / "lm")
    (tmp_path / "books").mkdir()

    def typed(texts, *commands):
        for number, text in enumerate(texts):
            (tmp_path / "books" / f"{number}.txt").write_text(text)
        told = [run(tmp_path, *command) for command in commands]
        assert [code for code, _ in told] == [0] * len(told), told
        return Datastore(tmp_path / "books.knnstore"), told[-1][1]

    return typed


def searched(store, queries, k, method, **options):
    return Searcher(store).search(queries, k, store.rows, method=method, rows=True, **options)


def test_a_store_of_one_key_goes_through_every_stage(typed, tmp_path):
    score = ("score", "--text", "books/", "--k", "5", "--lambda", "0.5", "--temperature", "1", "--json")
    store, told = typed(["a"], INGEST, ("index", "--store", "books"), score)
    assert store.rows == 1
    assert verify(store.root).intact
    query = store.segments[0].codec.decode(store.segments[0].keys(0, 1))
    for method in METHODS:
        found = searched(store, query, 3, method)
        assert found.rows.tolist() == [[0, ABSENT, ABSENT]]
        assert found.values[0, 0] == store.segments[0].values(0, 1)[0]
        assert found.distances[0, 0] == pytest.approx(0, abs=1e-6)
        assert np.isinf(found.distances[0, 1:]).all()
    report = json.loads(told.strip().split("\n")[-1])
    # the one neighbour is the token itself: p = (1 − λ) p_LM + λ
    alone, joined = report["base"]["perplexity"], report["knn"]["perplexity"]
    assert joined == pytest.approx(1 / (0.5 / alone + 0.5), rel=1e-4)


def test_a_document_of_one_token_has_one_row_and_its_key_is_that_of_the_bos_alone(typed):
    store, _ = typed(["a", "the store keeps every row that was read", "b"], INGEST)
    table = store.segments[0].documents
    assert table.tokens.tolist()[0] == table.tokens.tolist()[2] == 1
    keys = store.segments[0].keys(0, store.rows)
    first = [int(row) for row in table.first_row]
    assert (keys[first[0]] == keys[first[2]]).all()
    assert (keys[first[0]] == keys[first[1]]).all()  # whatever follows it
    assert table.locate(np.arange(store.rows)).tolist() == [0, *[1] * int(table.tokens[1]), 2]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A store of 30 keys, of which ten are the same, in more lists than some of them fill."""
    keys = clustered_keys(30, 8)
    keys[10:20] = keys[10]
    store = make_store(tmp_path_factory.mktemp("small") / "s.knnstore", [keys], key_dtype="float16", vocabulary=50)
    build_index(store, IndexOptions(nlist=8, train_sample=30), Job())
    return Datastore(store.root), keys


@pytest.mark.parametrize("method", METHODS)
def test_k_beyond_the_number_of_keys_finds_each_once_and_pads_with_absent_ones(small, method):
    store, keys = small
    found = searched(store, keys[:4], 100, method)
    for rows, distances in zip(found.rows, found.distances, strict=True):
        assert sorted(rows[:30].tolist()) == list(range(30))
        assert (rows[30:] == ABSENT).all()
        assert np.isinf(distances[30:]).all()
        assert (np.diff(distances[:30]) >= 0).all()


@pytest.mark.parametrize("method", METHODS)
def test_keys_that_are_equal_are_all_found(small, method):
    store, keys = small
    found = searched(store, keys[10:11], 10, method)
    assert sorted(found.rows[0].tolist()) == list(range(10, 20))
    assert np.ptp(found.distances[0]) == 0


def test_a_list_without_a_key_is_searched_like_any_other(tmp_path):
    keys = np.zeros((200, 4), np.float32)
    keys[:3] = 100  # three keys far off, so that not all lists have one
    store = make_store(tmp_path / "s.knnstore", [keys], key_dtype="float16", vocabulary=50)
    build_index(store, IndexOptions(nlist=4, train_sample=200), Job())
    searcher = Searcher(Datastore(store.root))
    assert (np.diff(searcher.parts[0].offsets) == 0).any()
    for method in ("lists", "quantised"):
        found = searcher.search(np.concatenate([keys[:1], keys[-1:]]), 3, 4, method=method, rows=True)
        assert sorted(found.rows[0].tolist()) == [0, 1, 2]
        assert (found.rows[1] > 2).all()


def test_absent_neighbours_speak_for_no_token_and_a_query_without_any_leaves_the_word_to_the_lm():
    neighbours = Neighbours(
        np.array([[1.0, np.inf], [np.inf, np.inf]], np.float32), np.array([[7, ABSENT], [ABSENT, ABSENT]])
    )
    assert neighbours.found.tolist() == [True, False]
    p = [target_probabilities(neighbours, np.full(2, token), (1, 2), (1.0,))[..., 0] for token in (7, ABSENT, 0)]
    assert [found.tolist() for found in p] == [[[1, 1], [0, 0]], [[0, 0], [0, 0]], [[0, 0], [0, 0]]]
    p = Evidence(neighbours).store_p(np.full(2, 7), np.log([0.2, 0.3]), (2,), (1.0,))
    assert p[:, 0, 0] == pytest.approx([1, 0.3])
