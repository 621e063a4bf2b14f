"""``--drop-keys``: what lies in the lists alone is found, built on, copied and verified as before."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from index_stores import clustered_keys, make_store, publish

from knnstore.datastore.arrays import open_array, read_chunk, write_chunk
from knnstore.datastore.history import load_history
from knnstore.datastore.manifest import load_manifest
from knnstore.datastore.store import Datastore
from knnstore.errors import CorruptStoreError, UsageError
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.living.compact import CompactOptions, compact
from knnstore.living.deriving import subset
from knnstore.living.remove import remove
from knnstore.living.restore import restore
from knnstore.scheduling import Job
from knnstore.verification.check import verify

KEYS = clustered_keys(2740, 13)  # a width that is no multiple of eight bytes


@pytest.fixture
def twins(tmp_path):
    """Two indexed stores of the same int8 keys in documents of 100 rows, and two segments; a document is removed."""
    first = make_store(
        tmp_path / "dropped" / "s.knnstore",
        [KEYS[:2000], KEYS[2000:2700]],
        queries=KEYS[2700:],
        key_dtype="int8",
        document_rows=100,
    )
    build(first)
    remove(first.root, ["300.txt"])
    shutil.copytree(first.root, tmp_path / "whole" / "s.knnstore")
    build(Datastore(first.root), drop_keys=True)
    stores = Datastore(first.root), Datastore(tmp_path / "whole" / "s.knnstore")
    for store in (first, *stores):
        store.close()  # else what they need would stay
    return stores


def build(store, **options):
    return build_index(store, IndexOptions(**options), Job())


def keys_on_disk(root):
    return sorted(path.parent.name for path in root.glob("segments/*/keys"))


def same_answers(one, other):
    for method in ("lists", "quantised", "exact"):
        found, expected = (Searcher(s).search(KEYS[2700:], 50, rows=True, method=method) for s in (one, other))
        assert (found.rows == expected.rows).all()
        assert (found.values == expected.values).all()
        assert (found.distances == expected.distances).all()


def test_every_search_and_every_reader_of_keys_finds_what_it_found_before(twins):
    dropped, whole = twins
    assert (keys_on_disk(dropped.root), keys_on_disk(whole.root)) == ([], ["0000", "0001"])
    assert verify(dropped.root).intact
    same_answers(dropped, whole)
    for mine, theirs in zip(dropped.segments, whole.segments, strict=True):
        assert (mine.keys(5, 699) == theirs.keys(5, 699)).all()
        rows = np.array([0, 3, 511, 512, 698])
        for segment in (mine, theirs):
            found = np.concatenate([keys[np.argsort(places)] for places, keys in segment.find_keys(rows)])
            assert sorted(map(tuple, found)) == sorted(map(tuple, theirs.keys(0, 699)[rows]))


def test_other_quantisers_are_trained_and_filled_from_the_lists_to_the_same_bytes(twins, bytes_of):
    dropped, whole = twins
    before = set(dropped.root.glob("index/*"))
    for store in twins:
        build(store, nlist=8, pq_bytes=1)
    assert not before & set(dropped.root.glob("index/*"))
    ours, theirs = bytes_of(dropped.root), bytes_of(whole.root)
    named = lambda files: {name: data for name, data in files.items() if name.startswith("index/")}  # noqa: E731
    assert named(ours) == named(theirs)
    assert Datastore(dropped.root).manifest.dropped == ("0000", "0001")
    same_answers(Datastore(dropped.root), Datastore(whole.root))


def test_the_only_keys_are_never_overwritten(twins):
    again = [build(Datastore(store.root), overwrite=True) for store in twins]  # without the document that was removed
    assert again[0].plan == again[1].plan
    with pytest.raises(UsageError, match="the only keys"):
        build(Datastore(twins[0].root), overwrite=True)
    same_answers(Datastore(twins[0].root), Datastore(twins[1].root))


def test_a_compaction_keeps_keys_once_and_a_subset_gives_a_store_like_any_other(twins, tmp_path, bytes_of):
    dropped, whole = twins
    made = []
    for store in twins:
        subset(store, store.root.parent / "part.knnstore", Job(), documents=["*0.txt"])
        compact(store.root, CompactOptions(), Job())
        made.append(bytes_of(store.root.parent / "part.knnstore"))
    assert made[0] == made[1]
    assert (keys_on_disk(dropped.root), keys_on_disk(whole.root)) == ([], ["0002"])
    assert Datastore(dropped.root).manifest.dropped == ("0002",)
    assert verify(dropped.root).intact
    same_answers(Datastore(dropped.root), Datastore(whole.root))


def test_what_comes_later_is_indexed_beside_it_and_taken_back_again(tmp_path):
    store = make_store(tmp_path / "s.knnstore", [KEYS[:2000], KEYS[2000:2700]])
    later = tmp_path / "later"
    shutil.copytree(store.root / "segments/0001", later)
    ended = store.manifest
    store = make_store(tmp_path / "t.knnstore", [KEYS[:2000]])
    build(store, drop_keys=True)
    shutil.copytree(later, store.root / "segments/0001")
    publish(store.root, replace(load_manifest(store.root), segments=ended.segments), "ingest", "add 700 keys")
    report = build(Datastore(store.root))
    assert (report.new_rows, keys_on_disk(store.root)) == (700, ["0001"])
    indexed = load_manifest(store.root).state
    restore(store.root)
    assert load_manifest(store.root).dropped == ("0000",)
    assert Datastore(store.root).rows == 2000
    restore(store.root, indexed)
    assert Datastore(store.root).rows == 2700
    build(Datastore(store.root), drop_keys=True)
    assert keys_on_disk(store.root) == []
    assert len(load_history(store.root).reach) == 1  # there is no way back to states that had them
    assert verify(store.root).intact


def test_a_kill_before_the_files_are_gone_leaves_a_whole_store_and_the_next_command_ends_it(twins, monkeypatch):
    whole = twins[1]
    with monkeypatch.context() as patch:
        patch.setattr("knnstore.datastore.edits.sweep", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build(Datastore(whole.root), drop_keys=True)
    (whole.root / "segments/0000/commits/keys-000001.json").unlink()  # and another in the middle of it
    told = verify(whole.root)
    assert told.intact
    assert told.leftovers
    same_answers(Datastore(whole.root), twins[0])
    build(Datastore(whole.root))
    assert keys_on_disk(whole.root) == []
    assert not verify(whole.root).leftovers


def test_keys_stay_as_long_as_somebody_reads_them(twins):
    reader = Datastore(twins[1].root)
    report = build(Datastore(reader.root), drop_keys=True)
    assert (report.dropped, report.freed) == (2700, 0)
    assert len(reader.segments[0].keys(0, 2000)) == 2000
    reader.close()
    assert build(Datastore(reader.root), drop_keys=True).dropped == 0
    assert keys_on_disk(reader.root) == []


@pytest.mark.parametrize("name", ["keys", "rows"])
def test_lists_that_hold_other_keys_keep_the_first_copy(twins, name):
    whole = twins[1].root
    (path,) = whole.glob(f"index/*/lists/0000/{name}")
    block = read_chunk(path, open_array(path), 1).copy()
    block[[3, 7]] = block[[7, 3]]  # whole by its checksum, and wrong
    write_chunk(path, 1, block)
    with pytest.raises(CorruptStoreError, match="doesn't hold the keys"):
        build(Datastore(whole), drop_keys=True)
    assert load_manifest(whole).dropped is None
    assert keys_on_disk(whole) == ["0000", "0001"]
