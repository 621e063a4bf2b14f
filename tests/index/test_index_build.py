"""Building: what is done stays done, and the bytes depend on the keys and the options alone."""

import shutil

import google_crc32c
import numpy as np
import pytest
from index_stores import clustered_keys, make_store
from killing import DyingRunner, KilledError, killed_at

from knnstore.cli.report.index import index_text
from knnstore.datastore.arrays import read_rows
from knnstore.datastore.manifest import load_manifest
from knnstore.datastore.store import Datastore
from knnstore.errors import CorruptStoreError, MismatchError, ResourceError
from knnstore.files import load_json, write_json
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.indexes.plan import IndexFolder
from knnstore.indexes.registry import open_index
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.indexing.plan import dry_run, plan_work
from knnstore.progress import Reporter
from knnstore.scheduling import Job, SerialRunner


class Says(Reporter):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def build(store, runner=None, reporter=None, memory=4 * 10**9, **options):
    job = Job(runner or SerialRunner(), reporter or Reporter(), memory)
    return build_index(store, IndexOptions(**options), job)


def snapshot(root):
    """Checksum of every file of an index and of the manifest."""
    files = [path for path in (root / "index").rglob("*") if path.is_file()] + [root / "knnstore.json"]
    return {path.relative_to(root).as_posix(): google_crc32c.value(path.read_bytes()) for path in files}


@pytest.fixture
def small_runs(monkeypatch):
    """A run of one chunk, so that there are many."""
    monkeypatch.setattr("knnstore.planning._RUN_BYTES", 1)
    monkeypatch.setattr("knnstore.planning._MOST_RUNS", 10**6)


def test_every_key_lies_once_in_its_list_with_its_value_and_row(store, small_runs):
    report = build(store, nlist=20)
    folder = open_index(store.root, report.name)
    for segment in store.segments:
        name = segment.root.name
        arrays = {a: read_rows(folder.lists(name, a), 0, segment.rows) for a in ("keys", "codes", "values", "rows")}
        rows = arrays["rows"].astype(np.int64)
        assert sorted(rows) == list(range(segment.rows))
        assert (arrays["keys"] == segment.keys(0, segment.rows)[rows]).all()
        assert (arrays["values"] == segment.values(0, segment.rows)[rows]).all()
        offsets = read_rows(folder.lists(name, "offsets"), 0, 21)
        lists = np.repeat(np.arange(20), np.diff(offsets))
        centroids = read_rows(folder.root / "quantizer" / "centroids", 0, 20)
        keys = arrays["keys"].astype(np.float32)
        nearest = ((keys[:, None] - centroids) ** 2).sum(-1)
        assert (nearest[np.arange(len(keys)), lists] <= nearest.min(1) + 1e-3).all()


def test_the_order_within_a_list_is_a_shuffle(store):
    report = build(store, nlist=1)
    rows = read_rows(open_index(store.root, report.name).lists("0000", "rows"), 0, 2000).astype(np.int64)
    head = rows[:125]
    assert abs(head.mean() - 1000) < 4 * 577 / np.sqrt(125)
    assert (np.diff(head) < 0).any()


def test_the_cut_of_the_runs_leaves_no_trace_in_the_bytes(tmp_path, monkeypatch):
    keys = clustered_keys(2000, 16)
    found = []
    for number, run_bytes in enumerate((1, 20_000, 2**29)):
        store = make_store(tmp_path / f"s{number}", [keys[:1500], keys[1500:]])
        monkeypatch.setattr("knnstore.planning._RUN_BYTES", run_bytes)
        monkeypatch.setattr("knnstore.planning._MOST_RUNS", 10**6)
        build(store, memory=(2 + number) * 10**9)
        found.append(snapshot(store.root))
    assert found[0] == found[1] == found[2]


def test_a_build_that_is_killed_again_and_again_ends_with_the_same_bytes(tmp_path, small_runs):
    keys = clustered_keys(2700, 16)
    whole, killed = (make_store(tmp_path / name, [keys[:2000], keys[2000:]], chunk_rows=256) for name in "ab")
    every = DyingRunner()
    build(whole, every)

    def leave_a_record_half_written():
        assert load_manifest(killed.root).index is None
        next(killed.root.glob("index/*/commits")).joinpath("x.json.1.tmp").touch()

    points = [0, 1, 7, 11, 12, 20]
    ran = killed_at(points, lambda runner: build(Datastore(killed.root), runner), leave_a_record_half_written)
    assert ran == sorted(every.ran)  # nothing twice
    assert snapshot(killed.root) == snapshot(whole.root)


def test_what_a_task_left_half_written_is_written_again(tmp_path, small_runs):
    store, twin = (make_store(tmp_path / name, [clustered_keys(1000, 16)], chunk_rows=128) for name in "st")
    with pytest.raises(KilledError):
        build(store, DyingRunner(11))
    folder = next((store.root / "index").iterdir())
    (folder / "lists/0000/keys/c/1/0").write_bytes(b"torn")
    report = build(store)
    assert build(twin).check == report.check
    assert snapshot(store.root) == snapshot(twin.root)


def test_a_finished_index_says_so_and_does_nothing(store):
    report, says, runner = build(store), Says(), DyingRunner(0)
    before = snapshot(store.root)
    again = build(Datastore(store.root), runner, says)
    assert (again.built, again.name, again.check) == (False, report.name, report.check)
    assert "already finished" in says.lines[0]
    assert snapshot(store.root) == before


def test_overwrite_builds_it_anew(store):
    before = build(store)
    runner = DyingRunner()
    after = build(Datastore(store.root), runner, overwrite=True)
    assert after == before
    assert runner.ran


def test_another_recipe_replaces_the_index_only_when_it_is_finished(store):
    first = build(store, nlist=8)
    with pytest.raises(KilledError):
        build(Datastore(store.root), DyingRunner(3), nlist=16)
    assert Searcher(Datastore(store.root)).plan.nlist == 8
    second = build(Datastore(store.root), nlist=16)
    assert second.name != first.name
    assert [path.name for path in (store.root / "index").iterdir()] == [second.name]


def test_the_report_tells_the_plan_the_recall_and_where_its_queries_came_from(store, tmp_path):
    says = Says()
    report = build(store, reporter=says, nlist=4096, nprobe=64)
    assert any("instead of 4,096" in line for line in says.lines)
    assert (report.check.source, report.check.queries, report.check.k) == ("heldout", 40, 1024)
    assert report.check.recall > 0.999  # 64 of 69 lists
    assert "40 held-out queries" in index_text(report, store.root)
    without = build(make_store(tmp_path / "w", [clustered_keys(500, 8)]))
    assert without.check.source == "stored"
    assert "stored queries" in index_text(without, tmp_path / "w")


def test_too_little_memory_or_disk_is_refused_before_any_work(store, monkeypatch):
    with pytest.raises(ResourceError, match=r"memory='300 MB' is too little.*need \d+ MB"):
        build(store, memory=300 * 10**6)
    monkeypatch.setattr("knnstore.diskspace.free_bytes", lambda path: 1000)
    with pytest.raises(ResourceError, match=r"1\.0 KB are free"):
        build(store)
    assert not (store.root / "index").exists() or not list((store.root / "index").rglob("zarr.json"))


def test_fewer_lists_or_shorter_codes_are_chosen_where_the_usual_ones_do_not_fit_and_it_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("knnstore.indexes.ivfpq.planning.FEWEST_LISTS", 8)
    store = make_store(tmp_path / "s", [clustered_keys(5000, 256)], chunk_rows=512)
    usual = dry_run(store, IndexOptions(), Job())
    least = usual.resources.peak_bytes - 512 * 256  # less than the usual lists take, whatever the runs
    memory = next(at for at in range(least, 10**8, -(10**5)) if lists_at(store, at) < usual.nlist)
    told = dry_run(store, IndexOptions(), Job(memory=memory))
    assert told.resources.peak_bytes <= memory
    assert any(f"not {usual.nlist}, to fit in" in sentence for sentence in told.sentences)
    with pytest.raises(ResourceError, match="memory="):
        dry_run(store, IndexOptions(nlist=usual.nlist), Job(memory=memory))
    monkeypatch.setattr(
        "knnstore.indexes.ivfpq.planning.free_bytes", lambda path: int(usual.resources.disk_bytes * 1.9)
    )
    told = dry_run(store, IndexOptions(), Job())
    assert told.pq_bytes == 32
    assert any("codes of 32 bytes, not 64, to fit on the disk" in sentence for sentence in told.sentences)


def lists_at(store, memory):
    return plan_work(store, IndexOptions(), Job(memory=memory)).folder.plan.nlist


def test_a_dry_run_says_what_a_build_takes_and_leaves_nothing(store):
    before = sorted(store.root.parent.rglob("*"))
    told = dry_run(store, IndexOptions(), Job())
    assert (told.nlist, told.new_rows) == (64, 2700)
    assert told.resources.disk_bytes > 0
    assert told.total_seconds > sum((told.seconds.train, told.seconds.fill, told.seconds.merge)) > 0
    assert "64 lists" in told.sentences[0]
    assert "time      about" in told.sentences[-1]
    assert sorted(store.root.parent.rglob("*")) == before


def test_a_dry_run_of_a_finished_index_says_that_nothing_is_to_be_done(store):
    build(store)
    told = dry_run(Datastore(store.root), IndexOptions(), Job())
    assert (told.seconds, told.new_rows) == (None, 0)
    assert "nothing to do" in told.sentences[0]


@pytest.mark.parametrize("name", ["keys", "values"])
def test_a_flipped_bit_in_a_chunk_is_named_with_its_rows(store, name):
    report = build(store)
    path = next((open_index(store.root, report.name).lists("0000", name) / "c" / "3").parent.glob("3*"))
    file = path / "0" if path.is_dir() else path
    data = bytearray(file.read_bytes())
    data[5] ^= 1
    file.write_bytes(data)
    with pytest.raises(CorruptStoreError, match=r"rows 1536 to 2000.*damaged.*overwrite=True"):
        Searcher(Datastore(store.root)).search(
            np.zeros((1, 16), np.float32), 2700, 10**6
        )  # so that every value is read


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_chunk_that_is_missing_or_short_is_noticed(store, damage):
    report = build(store)
    file = open_index(store.root, report.name).lists("0000", "keys") / "c/2/0"
    file.unlink() if damage == "missing" else file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(CorruptStoreError, match="is missing" if damage == "missing" else "has 100 bytes"):
        Searcher(Datastore(store.root)).search(np.zeros((1, 16), np.float32), 5, 10**6)


@pytest.mark.parametrize("name", ["../../etc", "0123", "0123456789ABCDEF", "x" * 16])
def test_an_index_name_that_is_a_path_is_never_followed(store, name):
    path = store.root / "knnstore.json"
    write_json(path, load_json(path) | {"index": name})
    with pytest.raises(CorruptStoreError, match="16 hexadecimal digits"):
        Datastore(store.root)


@pytest.mark.parametrize(
    "change", [{"nlist": 2**50}, {"nlist": 65}, {"dimension": 8}, {"pq_bytes": 3}, {"version": 2}, {"cells": "1"}]
)
def test_a_hostile_plan_is_refused(store, change):
    report = build(store)
    path = store.root / "index" / report.name / "index.json"
    write_json(path, load_json(path) | change)
    with pytest.raises((CorruptStoreError, MismatchError)):
        Searcher(Datastore(store.root))


@pytest.mark.parametrize("name", ["values", "rows", "codes"])
def test_lists_whose_arrays_are_cut_at_other_rows_are_refused(store, name):
    report = build(store)
    folder = open_index(store.root, report.name)
    shutil.rmtree(folder.lists("0000", f"{name}_sums"))
    path = folder.lists("0000", name) / "zarr.json"
    form = load_json(path)
    shape = form["chunk_grid"]["configuration"]["chunk_shape"]
    shape[0] //= 2
    write_json(path, form)
    with pytest.raises(CorruptStoreError, match="rows per chunk, but the keys have"):
        Searcher(Datastore(store.root))


def test_an_index_of_other_segments_is_refused(store, tmp_path):
    build(store)
    other = make_store(tmp_path / "other", [clustered_keys(2000, 16, seed=9)], vocabulary=999)
    shutil.rmtree(store.root / "segments" / "0000")
    shutil.copytree(other.root / "segments" / "0000", store.root / "segments" / "0000")
    with pytest.raises(MismatchError, match=r"made from another segment.*run knnstore\.index\(overwrite=True\)"):
        Searcher(Datastore(store.root))


def test_one_key_is_an_index(tmp_path):
    store = make_store(tmp_path / "s", [np.ones((1, 3), np.float32)])
    report = build(store)
    assert (report.plan.nlist, report.check.recall) == (1, 1.0)
    assert isinstance(open_index(store.root, report.name), IndexFolder)
    found = Searcher(Datastore(store.root)).search(np.zeros((1, 3), np.float32), 2, rows=True)
    assert found.rows.tolist() == [[0, -1]]
    assert found.distances[0, 0] == 3
