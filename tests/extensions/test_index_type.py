"""Another type of index, added from outside the package, goes through the same commands."""

import shutil

import flat_index  # noqa: F401 - it registers the type flat
import numpy as np
import pytest

from knnstore.attachment.search import Search
from knnstore.datastore.edits import editing
from knnstore.datastore.store import Datastore
from knnstore.description import describe_store
from knnstore.errors import CorruptStoreError, UsageError
from knnstore.files import write_json
from knnstore.indexes.exact import exact_search
from knnstore.indexes.registry import open_index, type_of
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.indexing.plan import dry_run
from knnstore.living.compact import CompactOptions, compact
from knnstore.living.remove import remove
from knnstore.scheduling import Job
from knnstore.scoring.job import score
from knnstore.scoring.options import ScoreOptions
from knnstore.verification.check import verify

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("made_by_a_small_lm")]


@pytest.fixture
def flat(small_reference, tmp_path, monkeypatch):
    """A real store, whose IVF-PQ index was replaced by a flat one."""
    monkeypatch.chdir(small_reference)
    root = shutil.copytree("books.knnstore", tmp_path / "books.knnstore")
    assert "any width" in dry_run(Datastore(root), IndexOptions(kind="flat"), Job()).sentences[0]
    report = build_index(Datastore(root), IndexOptions(kind="flat"), Job())
    assert (report.built, report.check.recall) == (True, 1)
    return root


def test_a_flat_index_finds_what_an_exact_search_finds(flat):
    store = Datastore(flat)
    queries = store.segments[0].queries()
    found, expected = Search(store)(queries, 20), exact_search(store, queries, 20, rows=True)
    np.testing.assert_array_equal(found.rows, expected.rows)
    np.testing.assert_array_equal(found.distances, expected.distances)
    ways = [score(ScoreOptions(k=100, exact=exact), store).to_json()["knn"]["perplexity"] for exact in (False, True)]
    assert ways[0] == ways[1]


def test_a_flat_index_is_kept_described_verified_and_recorded_like_any_other(flat):
    assert not build_index(Datastore(flat), IndexOptions(), Job()).built
    assert describe_store(flat).index.words == "every key"
    assert verify(flat).intact
    folder = open_index(flat, Datastore(flat).manifest.index)
    assert type_of(folder).options(type_of(folder).recipe(folder.plan), "here") == IndexOptions(kind="flat")
    with pytest.raises(UsageError, match="type flat holds no copy of the keys"):
        build_index(Datastore(flat), IndexOptions(drop_keys=True), Job())


def test_a_compaction_leaves_keys_to_be_indexed_where_a_type_does_not_carry_them_over(flat):
    remove(flat, [Datastore(flat).segments[0].documents[0].path])
    compact(flat, CompactOptions(), Job())
    assert Datastore(flat).manifest.index is None
    build_index(Datastore(flat), IndexOptions(kind="flat"), Job())
    assert describe_store(flat).index.rows == Datastore(flat).rows


def test_an_unknown_type_is_refused_by_name(flat):
    with pytest.raises(UsageError, match=r"'graph'.*ivfpq, flat"):
        build_index(Datastore(flat), IndexOptions(kind="graph"), Job())
    with editing(flat) as edit:
        write_json(open_index(flat, edit.state.index).root / "index.json", {"kind": "graph"})
    with pytest.raises(CorruptStoreError, match="'graph'"):
        open_index(flat, Datastore(flat).manifest.index)
