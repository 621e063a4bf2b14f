"""Compaction: one segment of what is left, found by the same searches; then what was removed leaves the disk."""

import shutil
from functools import cache

import numpy as np
import pytest
from index_stores import clustered_keys, make_store, stored_keys
from killing import DyingRunner, KilledError, killed_at
from living_bytes import everything_in
from typed import answered

from knnstore.datastore.history import changes
from knnstore.datastore.store import Datastore
from knnstore.errors import UsageError
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.living.compact import CompactOptions, compact, plan_compaction
from knnstore.living.remove import remove
from knnstore.living.restore import restore
from knnstore.scheduling import Job

KEYS = clustered_keys(2740, 16)


@pytest.fixture(scope="module")
def living(tmp_path_factory):
    """``living(root, removed, key_dtype)``: three segments in documents of 100 rows, indexed, with a document of each
    removed; each made once and copied.
    """

    @cache
    def made(removed, key_dtype):
        if removed:
            root = living(tmp_path_factory.mktemp("living") / "s.knnstore", (), key_dtype)
            remove(root, removed)
            return root
        root = tmp_path_factory.mktemp("indexed") / "s.knnstore"
        segments = [KEYS[:1200], KEYS[1200:2000], KEYS[2000:2700]]
        make_store(root, segments, queries=KEYS[2700:], document_rows=100, chunk_rows=256, key_dtype=key_dtype)
        build_index(Datastore(root), IndexOptions(nlist=16), Job())
        return root

    def living(root, removed=("200.txt",), key_dtype="float16"):
        return shutil.copytree(made(removed, key_dtype), root)

    return living


@pytest.fixture(params=["float16", "int8"])
def root(request, living, tmp_path):
    return living(tmp_path / "s.knnstore", key_dtype=request.param)


@pytest.fixture
def short_runs(monkeypatch):
    monkeypatch.setattr("knnstore.planning._RUN_BYTES", 1)
    monkeypatch.setattr("knnstore.planning._MOST_RUNS", 10**6)


@pytest.fixture(scope="module")
def compacted(living, tmp_path_factory):
    """A store compacted without interruption, in runs of a chunk, and the tasks that ran."""
    whole, every = living(tmp_path_factory.mktemp("whole") / "s.knnstore"), DyingRunner()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("knnstore.planning._RUN_BYTES", 1)
        patched.setattr("knnstore.planning._MOST_RUNS", 10**6)
        compact(whole, CompactOptions(), Job(every))
    return whole, sorted(every.ran)


def search(root, **arguments):
    found = Searcher(Datastore(root)).search(KEYS[2700:], 80, 16, rows=True, **arguments)
    return found.distances, found.values


def test_a_compacted_store_finds_what_it_found_before(root):
    store = Datastore(root)
    assert (len(store.segments), store.rows, store.live_rows) == (3, 2700, 2400)
    keys, values = stored_keys(store)
    live = np.concatenate(
        [np.delete(np.arange(n), range(200, 300)) + f for f, n in ((0, 1200), (1200, 800), (2000, 700))]
    )
    before, exact = search(root), search(root, method="exact")
    store.close()
    report = compact(root, CompactOptions(), Job())
    assert (report.due, report.segments, report.rows, report.removed_documents, report.removed_rows) == (
        True, 3, 2400, 3, 300,
    )  # fmt: skip
    after = Datastore(root)
    assert (len(after.segments), after.rows, after.manifest.removed) == (1, 2400, None)
    half_a_unit = 0 if store.segments[0].plan.key_dtype == "float16" else after.segments[0].codec.scales.max() / 2
    np.testing.assert_allclose(stored_keys(after)[0], keys[live], atol=half_a_unit * 1.001)
    assert (stored_keys(after)[1] == values[live]).all()
    assert [document.path for document in after.segments[0].documents.origins()].count("100.txt") == 3
    if not half_a_unit:
        np.testing.assert_allclose(search(root)[0], before[0], rtol=1e-5)  # other centroids, other rounding
        np.testing.assert_allclose(search(root, method="exact")[0], exact[0], rtol=1e-6)
    coded = search(root, method="quantised")
    assert np.isfinite(coded[0]).all()
    assert {path.name for path in (root / "segments").iterdir()} == {"0003"}
    assert {path.name for path in root.glob("index/*/lists/*")} == {"0003"}
    assert not list(root.glob("removed/*")) + list(root.glob("index/*/runs")) + list(root.glob("segments/*/copy"))
    assert report.freed > 0
    assert report.held == ()


def test_lists_that_were_copied_are_those_that_a_build_would_make(living, tmp_path, bytes_of):
    """Same quantisers, same keys: regrouping the old lists and filling new ones leave the same bytes."""
    root = living(tmp_path / "s.knnstore", removed=())
    name = Datastore(root).manifest.index
    compact(root, CompactOptions(), Job())
    assert Datastore(root).manifest.index == name
    copied = {k: v for k, v in bytes_of(root / "index" / name / "lists").items() if "commits" not in k}
    from knnstore.files import remove_folder
    from knnstore.indexes.ivfpq.building import fill_lists
    from knnstore.indexes.registry import open_index

    folder = open_index(root, name)
    remove_folder(folder.lists("0003"))
    fill_lists(folder, Datastore(root).segments[0], 2, Job())
    made = {k: v for k, v in bytes_of(root / "index" / name / "lists").items() if "commits" not in k}
    assert {k for k in copied if k != "0003/check.json"} == set(made)
    assert all(copied[k] == made[k] for k in made)


@pytest.mark.usefixtures("short_runs")
def test_a_compaction_that_is_killed_again_and_again_ends_with_the_same_bytes(living, compacted, tmp_path, bytes_of):
    whole, tasks = compacted
    killed = living(tmp_path / "b.knnstore")
    before = search(killed)

    def nothing_has_happened_yet():
        np.testing.assert_array_equal(search(killed)[0], before[0])

    points = [0, 3, 9, 12, 15, 20]
    ran = killed_at(points, lambda runner: compact(killed, CompactOptions(), Job(runner)), nothing_has_happened_yet)
    assert ran == tasks  # nothing twice
    assert bytes_of(killed) == bytes_of(whole)


def test_a_compaction_that_was_given_up_leaves_nothing_behind(living, tmp_path, bytes_of):
    root = living(tmp_path / "s.knnstore")
    with pytest.raises(KilledError):
        compact(root, CompactOptions(), Job(DyingRunner(4)))
    remove(root, ["300.txt"])  # so that it isn't the same compaction any more
    compact(root, CompactOptions(), Job())
    assert len(list((root / "segments").iterdir())) == 1
    assert Datastore(root).rows == 2100


def test_what_is_removed_leaves_the_disk(living, tmp_path):
    """Neither a key nor a value, code or name of the removed documents is in any file of the store."""
    root = living(tmp_path / "s.knnstore", key_dtype="float16")
    keys = [KEYS[first + 200 : first + 300].astype(np.float16) for first in (0, 1200, 2000)]
    gone = [key.tobytes() for block in keys for key in block]
    texts = b"".join(path.read_bytes() for path in root.glob("index/*/lists/*/keys/c/**/*") if path.is_file())
    assert all(key in texts for key in gone)
    compact(root, CompactOptions(), Job())
    everything = b"".join(path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file())
    assert not [key for key in gone if key in everything]
    assert KEYS[0].astype(np.float16).tobytes() in everything
    assert b"200.txt" not in everything
    store = Datastore(root)
    left = {key.tobytes() for key in store.segments[0].keys(0, store.rows)}
    assert not left.intersection(gone)


def test_held_out_text_that_is_removed_leaves_the_disk_too(living, tmp_path):
    root = living(tmp_path / "s.knnstore")
    needles = [b"held out.txt", *(key.tobytes() for key in KEYS[2700:])]
    before = everything_in(root)
    assert all(needle in before for needle in needles)
    assert remove(root, ["held out.txt"]).heldout_tokens == 40
    assert not any(len(Datastore(root).heldout(segment)) for segment in Datastore(root).segments)
    compact(root, CompactOptions(), Job())
    after = everything_in(root)
    assert not [needle for needle in needles if needle in after]


def test_a_dry_run_says_what_would_be_done_and_changes_nothing(living, tmp_path):
    root = living(tmp_path / "s.knnstore")
    before = everything_in(root)
    planned = answered(tmp_path, "compact", "--store", "s", "--dry-run")
    assert (planned["due"], planned["segments"], planned["removed_rows"]) == (True, 3, 300)
    planned = answered(tmp_path, "remove", "--store", "s", "--document", "0.txt", "--dry-run")
    assert (planned["documents"], planned["state"]) == (3, None)
    assert everything_in(root) == before


def test_a_reader_that_was_there_before_keeps_its_state(living, tmp_path):
    root = living(tmp_path / "s.knnstore")
    reader = Datastore(root)
    searcher = Searcher(reader)
    before, values = searcher.search(KEYS[2700:], 80, 16, rows=True), reader.segments[2].values(0, 700)
    state = reader.manifest.state
    report = compact(root, CompactOptions(), Job())
    assert report.held == (state,)
    assert Datastore(root).rows == 2400
    again = Searcher(reader).search(KEYS[2700:], 80, 16, rows=True)
    np.testing.assert_array_equal(again.rows, before.rows)
    assert (reader.segments[2].values(0, 700) == values).all()
    assert {path.name for path in (root / "segments").iterdir()} == {"0000", "0001", "0002", "0003"}
    reader.close()
    swept = compact(root, CompactOptions(), Job())
    assert (swept.due, swept.held) == (False, ())
    assert swept.freed > 0
    assert {path.name for path in (root / "segments").iterdir()} == {"0003"}


def test_the_policy_waits_for_many_segments_or_removed_keys(living, tmp_path):
    root = living(tmp_path / "s.knnstore")
    due = lambda **options: plan_compaction(Datastore(root), CompactOptions(**options)).due  # noqa: E731
    assert due()
    assert due(auto=True)  # a ninth of the keys is removed
    restore(root, 2)
    assert due()
    assert not due(auto=True)
    assert due(auto=True, most_segments=2)
    compact(root, CompactOptions(), Job())
    assert not due()


def test_a_removal_once_more_changes_nothing_even_when_its_bytes_are_gone(living, tmp_path):
    root = living(tmp_path / "s.knnstore")
    state = Datastore(root).manifest.state
    again = remove(root, ["200.txt"])
    assert (again.documents, again.rows, again.state, Datastore(root).manifest.state) == (3, 300, state, state)
    assert remove(root, ["200.txt", "300.txt"]).rows == 300
    compact(root, CompactOptions(), Job())
    state = Datastore(root).manifest.state
    again = remove(root, ["300.txt", "200.txt"])
    assert (again.documents, again.rows, again.state, Datastore(root).manifest.state) == (0, 0, state, state)
    with pytest.raises(UsageError, match=r"'nowhere\.txt' matches no document"):
        remove(root, ["nowhere.txt"])


def test_a_return_to_the_last_documents_that_is_repeated_does_not_turn_back(living, tmp_path):
    root = living(tmp_path / "s.knnstore")
    first, second = restore(root), restore(root)
    assert (first.to, first.state, first.rows) == (second.to, second.state, second.rows) == (2, 4, 2700)


def test_a_state_whose_documents_are_there_already_is_not_returned_to_again(living, tmp_path):
    """So that a command that was killed when it was done can be typed again."""
    root = living(tmp_path / "s.knnstore")
    first, second = restore(root, 2), restore(root, 2)
    assert (first.to, first.state, first.rows) == (second.to, second.state, second.rows) == (2, 4, 2700)
    assert [change.kind for change in changes(root)][3:] == ["restore"]


def test_an_earlier_state_can_be_returned_to_until_compaction(living, tmp_path):
    root = living(tmp_path / "s.knnstore")
    assert [change.kind for change in changes(root)] == ["ingest", "index", "remove"]
    report = restore(root)
    assert (report.to, report.rows, report.unindexed) == (2, 2700, 0)
    assert Searcher(Datastore(root)).plan.nlist == 16
    assert Datastore(root).live_rows == 2700
    assert restore(root, 3).rows == 2400  # and forward again
    with pytest.raises(UsageError, match="can't return to state 77"):
        restore(root, 77)
    compact(root, CompactOptions(), Job())
    with pytest.raises(UsageError, match="no earlier state"):
        restore(root)
    with pytest.raises(UsageError, match="can't return to state 2"):
        restore(root, 2)


def test_a_store_without_an_index_is_compacted_too(tmp_path):
    make_store(tmp_path / "s", [KEYS[:700], KEYS[700:1200]], document_rows=100)
    remove(tmp_path / "s", ["0.txt"])
    report = compact(tmp_path / "s", CompactOptions(), Job())
    store = Datastore(tmp_path / "s")
    assert (report.rows, store.rows, store.manifest.index) == (1000, 1000, None)


def test_everything_can_be_removed(living, tmp_path):
    root = living(tmp_path / "s.knnstore")
    remove(root, ["*"])
    found = Searcher(Datastore(root)).search(KEYS[:3], 5, 16, rows=True)
    assert (found.rows == -1).all()
    report = compact(root, CompactOptions(), Job())
    assert (report.rows, Datastore(root).rows, Datastore(root).manifest.index) == (0, 0, None)
