"""A takedown leaves nothing behind, not even where a quantiser learnt a single key by heart."""

import hashlib
import shutil

import numpy as np
import pytest
from index_stores import clustered_keys, make_store
from living_bytes import everything_in

from knnstore.datastore.store import Datastore
from knnstore.indexes.ivfpq.plan import RecentredPlan
from knnstore.indexes.ivfpq.quantiser import load_quantiser
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.indexes.registry import open_index
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.living.compact import CompactOptions, compact
from knnstore.living.deriving import merge, subset
from knnstore.living.remove import remove
from knnstore.scheduling import Job

DIMENSION = 16
LONE = range(540, 546)
"""Rows of keys that lie far from all others, each in a document of its own; none is kept back from the training."""


def keys_with_loners():
    keys = clustered_keys(2040, DIMENSION)
    for number, row in enumerate(LONE):
        keys[row] = 0
        keys[row, number] = 60 + 7 * number
        keys[row, 10:] = np.random.default_rng(row).normal(size=6)
    return keys


@pytest.fixture(scope="module", params=["float16", "int8"])
def made(request, tmp_path_factory):
    """2000 keys, a document each, in 51 lists, as many as can be trained; the lone ones are lists of their own."""
    keys = keys_with_loners()
    digests = [hashlib.sha256(bytes([7, row // 256, row % 256])).digest() for row in range(2000)]
    made = make_store(
        tmp_path_factory.mktemp("made") / "s.knnstore", [keys[:2000]], queries=keys[2000:], document_rows=1,
        key_dtype=request.param, chunk_rows=256, digests=digests,
    )  # fmt: skip
    build_index(made, IndexOptions(nlist=4096), Job())
    return made.root


@pytest.fixture
def root(made, tmp_path):
    return shutil.copytree(made, tmp_path / "s.knnstore")


def traces(root):
    """What the lone keys are on disk: as stored, as numbers, and what codebooks could know of them."""
    store = Datastore(root)
    (segment,) = store.segments
    quantiser = load_quantiser(open_index(root, store.manifest.index))
    found = {"as stored": [], "decoded": [], "in codebooks": []}
    for row in LONE:
        stored = segment.keys(row, row + 1)
        key = segment.codec.decode(stored)
        found["as stored"].append(stored.tobytes())
        found["decoded"].append(key.tobytes())
        residual = key - quantiser.centroids[quantiser.assign(key)]
        parts = np.split(residual[0], len(quantiser.codebooks))
        found["in codebooks"] += [part.tobytes() for part in parts if np.abs(part).max() > 1e-3]
    store.close()
    return found


def compacted(root):
    compact(root, CompactOptions(), Job())
    return root


def divided(root):
    """The part that isn't removed, which nobody has compacted yet."""
    return subset(Datastore(root), root.with_name("part.knnstore"), Job(), share=1.0).store


def merged(root):
    """With a smaller store of other keys, so that the index of the first is the one that is carried over."""
    other = make_store(
        root.with_name("other.knnstore"), [clustered_keys(300, DIMENSION, seed=5)], chunk_rows=256,
        key_dtype=Datastore(root).segments[0].plan.key_dtype,
    )  # fmt: skip
    return merge([other, Datastore(root)], root.with_name("both.knnstore"), Job()).store


@pytest.mark.parametrize("way", [compacted, divided, merged])
def test_lone_keys_that_were_removed_are_in_no_byte_of_the_store(root, way):
    needles, before = traces(root), everything_in(root)
    assert all(needle in before for needle in needles["as stored"])
    learnt = [needle for needle in needles["decoded"] if needle in before]
    assert learnt  # as a centroid
    remove(root, [f"{row}.txt" for row in LONE])
    left = way(root)
    store = Datastore(left)
    plan = open_index(left, store.manifest.index).plan
    assert isinstance(plan, RecentredPlan)
    assert plan.nlist == 51
    after = everything_in(left)
    assert {kind: [n for n in some if n in after] for kind, some in needles.items()} == {kind: [] for kind in needles}
    keys = keys_with_loners()
    found = Searcher(store).search(keys[2000:], 50, 51)
    exact = Searcher(store).search(keys[2000:], 50, method="exact")
    np.testing.assert_allclose(found.distances, exact.distances, rtol=3e-3)  # int8, beside outliers
    assert Searcher(store).check.recall > 0.98


def test_what_was_removed_before_the_training_needs_no_new_quantisers(root):
    remove(root, [f"{row}.txt" for row in LONE])
    build_index(Datastore(root), IndexOptions(nlist=4096, overwrite=True), Job())
    name = Datastore(root).manifest.index
    compacted(root)
    assert Datastore(root).manifest.index == name


def test_a_second_takedown_makes_them_anew_once_more(root):
    for row in LONE[:2]:
        remove(root, [f"{row}.txt"])
        compacted(root)
        plan = open_index(root, Datastore(root).manifest.index).plan
        assert plan.trained_on[0].name == Datastore(root).manifest.segments[0]
    report = build_index(Datastore(root), IndexOptions(nlist=4096), Job())
    assert (report.built, report.drift) == (False, None)  # the same command as ever has nothing to do
