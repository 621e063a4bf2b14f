"""One writer at a time in a bucket, and what becomes of those that die or freeze."""

import json
import subprocess
import sys
import threading
import time

import pytest

from knnstore.datastore.history import changes, publish
from knnstore.datastore.locking import LOCK_FILE, holder, read_holder, writing
from knnstore.datastore.manifest import KeyRecipe, Manifest, ModelIdentity, load_manifest, save_manifest
from knnstore.errors import LockedError, UsageError
from knnstore.objects import lease
from knnstore.objects.path import version_of

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
        "import sys\nfrom knnstore.datastore.locking import writing\nfrom knnstore.objects.path import path_of\n"
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
    assert said == [f"waiting   {lease.describe_holder(told)} held the store and may be dead: 1 s to see"]


@pytest.mark.parametrize("froze_over", ["knnstore.json", "000001.json"])
def test_a_writer_that_froze_and_was_taken_for_dead_can_not_publish(url, monkeypatch, froze_over):
    save_manifest(url, FIRST)

    def look_and_freeze(path):
        found = version_of(path)
        if path.name == froze_over:
            monkeypatch.setattr("knnstore.datastore.history.version_of", version_of)
            publish(url, load_manifest(url), "index", "the other's")
        return found

    monkeypatch.setattr("knnstore.datastore.history.version_of", look_and_freeze)
    with pytest.raises(LockedError, match=r"was changed by another writer.*run the same command again"):
        publish(url, FIRST, "ingest", "too late")
    assert load_manifest(url).state == 1
    assert [change.what for change in changes(url)] == ["the other's"]


def test_the_states_of_a_store_in_a_bucket_are_logged_one_after_the_other(url):
    save_manifest(url, FIRST)
    for number in range(3):
        publish(url, load_manifest(url), "index", f"change {number}")
    assert [(change.state.state, change.what) for change in changes(url)] == [
        (1, "change 0"),
        (2, "change 1"),
        (3, "change 2"),
    ]


def test_a_service_that_does_not_heed_conditions_is_refused(url, s3):
    s3.faults.deaf = True
    with pytest.raises(UsageError, match=r"doesn't heed conditional writes .*reading it there works"), writing(url):
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
