"""One writer at a time in a bucket, and what becomes of those that die or freeze."""

import json
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest

from knnstore.datastore import edits
from knnstore.datastore.adopting import own_segment
from knnstore.datastore.discarding import discard_contents
from knnstore.datastore.edits import editing
from knnstore.datastore.history import changes
from knnstore.datastore.locking import LOCK_FILE, holder, read_holder, writing
from knnstore.datastore.manifest import KeyRecipe, Manifest, ModelIdentity, load_manifest, save_manifest
from knnstore.datastore.sweeping import remove_tree
from knnstore.errors import LockedError, UsageError
from knnstore.files import files_of, guard, lease, load_json, version_of
from knnstore.recovery.job import RepairOptions, repair
from knnstore.scheduling import Job
from knnstore.verification import check

MOST_SECONDS = 60
FIRST = Manifest("knnstore", 1, ModelIdentity("m", "0", "0", "0", 10), KeyRecipe("hidden", 8, 16, 8), (), None)


def beat_of(url):
    return json.loads((url / LOCK_FILE).read_bytes())["beat"]


def wait_until(condition):
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < MOST_SECONDS
        time.sleep(0.05)


@pytest.fixture
def quick(monkeypatch):
    # not the seconds after which a lock lapses: on a busy machine one that is alive may be late
    monkeypatch.setattr(lease, "RENEWED_SECONDS", 0.1)
    monkeypatch.setattr(lease, "_LOOK_SECONDS", 0.1)


def test_a_second_writer_is_told_who_the_first_is(url, quick):
    with writing(url):
        assert "process" in holder(url)
        token = read_holder(url)
        assert token
        with pytest.raises(LockedError, match=r"is being written by process \d+ on .* since"), writing(url):
            pass
        beat = beat_of(url)
        wait_until(lambda: beat_of(url) > beat)
        assert read_holder(url) == token  # renewed, and the same to workers that look for it
    assert holder(url) is None
    with writing(url):
        assert read_holder(url) != token


def test_many_that_want_the_lock_at_once_get_it_one_after_the_other(url, quick):
    inside, most, told = [], [], []

    def write():
        try:
            with writing(url):
                inside.append(1)
                most.append(len(inside))
                beat = beat_of(url)
                wait_until(lambda: beat_of(url) > beat)
                inside.pop()
        except LockedError as error:
            told.append(str(error))

    threads = [threading.Thread(target=write) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1}
    assert len(most) + len(told) == 6


def test_the_lock_of_a_process_of_this_machine_that_was_killed_is_free_at_once(url, s3):
    script = (
        "import sys\nfrom knnstore.datastore.locking import writing\nfrom knnstore.files import path_of\n"
        "with writing(path_of(sys.argv[1])):\n    print('in', flush=True)\n    sys.stdin.read()\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(url)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "in\n"
    process.kill()
    process.wait()
    said = []
    with writing(url, said.append):
        assert said == []  # it had nothing to wait for


def test_a_holder_elsewhere_that_shows_no_sign_of_life_is_waited_for_and_then_replaced(url, quick, monkeypatch):
    monkeypatch.setattr(lease, "LAPSED_SECONDS", 1.0)
    told = {"host": "elsewhere", "pid": 7, "since": "2026-01-01 00:00:00", "machine": "other", "token": "t", "beat": 1}
    (url / LOCK_FILE).write_bytes(json.dumps(told).encode())
    said, begun = [], time.monotonic()
    with writing(url, said.append):
        assert time.monotonic() - begun >= 1
    assert said == [f"waiting   {lease.describe_holder(told)} held the store and may be dead: checking for 1 s"]


@pytest.fixture
def asleep(quick, monkeypatch):
    """``with asleep(url) as edit``: a writer of this process that doesn't renew its lock, as one that is frozen."""

    @contextmanager
    def hold(url):
        monkeypatch.setattr(lease, "RENEWED_SECONDS", 3600)
        with editing(url) as edit:
            monkeypatch.setattr(lease, "RENEWED_SECONDS", 0.1)
            yield edit

    return hold


def publish_other(edit):
    return edit.publish(edit.state, "index", "the other's")


def take_over(url, monkeypatch, work):
    with monkeypatch.context() as here:
        here.setattr(lease, "LAPSED_SECONDS", 0.2)  # whom it waits for never renews the lock
        here.setattr(edits, "version_of", version_of)
        here.setattr(guard, "_guards", [])
        with editing(url) as edit:
            return work(edit)


@pytest.mark.parametrize("froze_over", ["nothing", "knnstore.json", "000001.json"])
def test_a_writer_that_froze_and_was_taken_for_dead_can_not_publish(url, asleep, monkeypatch, froze_over):
    save_manifest(url, FIRST)

    def look_and_freeze(path):
        seen = version_of(path)
        if path.name == froze_over and not load_manifest(url).state:
            take_over(url, monkeypatch, publish_other)
        return seen

    with (
        pytest.raises(LockedError, match=r"another writer took over .*run the same command again"),
        asleep(url) as edit,
    ):
        present = load_manifest(url)
        if froze_over == "nothing":
            take_over(url, monkeypatch, publish_other)
        else:
            monkeypatch.setattr(edits, "version_of", look_and_freeze)
        edit.publish(present, "ingest", "too late")
    assert load_manifest(url).state == 1
    assert load_manifest(url).epoch == 1
    assert [change.what for change in changes(url)] == ["the other's"]


def test_a_writer_that_was_replaced_before_it_had_looked_at_the_store_can_not_publish(url, asleep, monkeypatch):
    save_manifest(url, FIRST)
    real = edits.version_of

    def look_late(path):
        monkeypatch.setattr(edits, "version_of", real)
        take_over(url, monkeypatch, publish_other)
        return real(path)

    monkeypatch.setattr(edits, "version_of", look_late)
    with pytest.raises(LockedError), asleep(url) as edit:
        edit.publish(edit.state, "ingest", "too late")
    assert [change.what for change in changes(url)] == ["the other's"]


def test_a_writer_that_was_replaced_removes_nothing_and_writes_under_no_name_of_its_successor(url, asleep, monkeypatch):
    save_manifest(url, FIRST)

    def make_segment(edit):
        segment = own_segment(edit, None)
        (segment / "segment.json").write_bytes(b"{}")
        return segment

    with pytest.raises(LockedError), asleep(url) as edit:
        mine = make_segment(edit)
        other = take_over(url, monkeypatch, make_segment)
        assert other != mine
        assert own_segment(edit, mine) == mine
        with pytest.raises(LockedError):
            remove_tree(other)
        with pytest.raises(LockedError):  # it is known now
            (mine / "late").write_bytes(b"")
    assert set((url / "segments").iterdir()) == {mine, other}


def save_record(edit, name):
    """Save a record beside the manifest, as ``tune`` does."""
    edit.replace_record(edit.root / "tuned.json", replace(FIRST.model, name=name))


def test_a_mixture_tuned_by_a_writer_that_was_replaced_is_not_saved(url, asleep, monkeypatch):
    save_manifest(url, FIRST)
    with pytest.raises(LockedError), asleep(url) as edit:
        take_over(url, monkeypatch, lambda other: save_record(other, "the other's"))
        save_record(edit, "too late")
    assert load_json(url / "tuned.json")["name"] == "the other's"


def test_an_overwrite_that_was_replaced_leaves_the_mixture_that_its_successor_tuned(url, asleep, monkeypatch):
    save_manifest(url, FIRST)
    with pytest.raises(LockedError), asleep(url) as edit:
        take_over(url, monkeypatch, lambda other: save_record(other, "the other's"))
        discard_contents(edit, FIRST.model, FIRST.key)
    assert load_json(url / "tuned.json")["name"] == "the other's"


@pytest.mark.parametrize("turn", [1, 2], ids=["what is there", "what is left"])
def test_a_repair_that_was_replaced_reports_no_damage_where_another_is_at_work(url, quick, monkeypatch, turn):
    save_manifest(url, FIRST)
    (url / "notes.txt").write_bytes(b"damage that no repair can undo")
    monkeypatch.setattr(lease, "RENEWED_SECONDS", 3600)
    listings, real = [], check.missing_states

    def freeze_and_look(root, files):
        listings.append(files)
        if len(listings) == turn:
            take_over(url, monkeypatch, publish_other)
        return real(root, files)  # the other's record isn't among the files that were listed

    monkeypatch.setattr(check, "missing_states", freeze_and_look)
    with pytest.raises(LockedError, match=r"another writer took over .*run the same command again"):
        repair(url, RepairOptions(), Job())
    monkeypatch.setattr(check, "missing_states", real)
    assert [damage.path for damage, _ in repair(url, RepairOptions(), Job()).left] == ["notes.txt"]


def test_what_a_dead_writer_left_is_continued_in_a_copy_and_the_epoch_stays(url, asleep, monkeypatch):
    save_manifest(url, FIRST)
    with pytest.raises(LockedError), asleep(url) as edit:
        begun = own_segment(edit, None)
        for name in ("commits/a.json", "a/c/0", "segment.json"):
            (begun / name).write_bytes(name.encode())
        own = take_over(url, monkeypatch, lambda edit: own_segment(edit, begun))
    assert own.name == "000010000"
    assert {
        path.relative_to(own).as_posix(): path.read_bytes().decode() for path, *_ in files_of(own).entries(own)
    } == {name: name for name in ("commits/a.json", "a/c/0", "segment.json")}
    assert not begun.is_dir()
    with editing(url) as edit:  # one after the other, they share the epoch
        assert edit.epoch == 1
        assert own_segment(edit, own) == own
    (url / LOCK_FILE).unlink()
    with editing(url) as edit:  # the manifest knows it too
        assert edit.epoch == 1


def test_the_states_of_a_store_in_a_bucket_are_logged_one_after_the_other(url):
    save_manifest(url, FIRST)
    for number in range(3):
        with editing(url) as edit:
            edit.publish(edit.state, "index", f"change {number}")
    assert [(change.state.state, change.what) for change in changes(url)] == [
        (1, "change 0"),
        (2, "change 1"),
        (3, "change 2"),
    ]


def test_a_service_that_does_not_heed_conditions_is_refused(url, s3):
    s3.faults.deaf = True
    with pytest.raises(UsageError, match=r"ignores conditional writes .*reading from this service works"), writing(url):
        pass
    assert not (url / LOCK_FILE).exists()


def test_a_service_that_is_away_for_a_while_loses_nobody_the_lock(url, s3, quick):
    with writing(url):
        s3.forget()
        s3.faults.broken = 2
        wait_until(lambda: s3.requests["PUT"] >= 6)
        s3.faults.broken = 0
        assert "process" in holder(url)
        with pytest.raises(LockedError), writing(url):
            pass
