"""Two writers and many readers of one store, command by command."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from faults.material import INDEX, INGEST, STORE, bytes_of, differences, grow_corpus, run

from knnstore.datastore.store import Datastore
from knnstore.errors import UnfinishedError
from knnstore.indexes.ivfpq.search import Searcher

HOLDER = """
import sys, threading
from pathlib import Path
from knnstore.datastore.locking import writing
with writing(Path(sys.argv[1])):
    print("held", flush=True)
    threading.Event().wait()  # until it is killed
"""
REMOVE = ("remove", "--store", "books", "--document", "books/2.txt")
COMPACT = ("compact", "--store", "books")
SUFFIXES = ("suffixes", "--store", "books")


@pytest.fixture
def held(here):
    """A folder whose store another process is writing, and that process."""
    with subprocess.Popen([sys.executable, "-c", HOLDER, here / STORE], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        yield here, process
        process.kill()


def test_a_second_writer_says_who_holds_the_store_and_ends_with_1_until_that_one_is_dead(held, made):
    here, process = held
    told = (
        rf"Error: {STORE} is being written by process {process.pid} on {re.escape(socket.gethostname())} since \d{{4}}-"
    )
    before = bytes_of(here / STORE)
    for command in (INGEST, INDEX, REMOVE, COMPACT, SUFFIXES):
        code, said = run(here, *command)
        assert (code, bool(re.search(told, said))) == (1, True), said
    assert "corpus    " not in run(here, *INGEST)[1]  # not after hours of listing, or of loading an LM
    assert differences(bytes_of(here / STORE), before) == []
    assert run(here, "info", "books")[0] == 0  # who reads isn't kept out
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert str(process.pid) in (here / STORE / ".lock").read_text()  # stale, and in nobody's way
    assert [run(here, *command)[0] for command in (INGEST, INDEX)] == [0, 0]
    assert differences(bytes_of(here / STORE), bytes_of(made / STORE)) == []


def found(store):
    """What a search for a store's own held-out queries finds: rows and distances as bytes; None without an index."""
    try:
        searcher = Searcher(store)
    except UnfinishedError:
        return None
    neighbours = searcher.search(store.segments[0].queries()[:8], 16, 8, rows=True)
    return store.rows, neighbours.rows.tobytes(), np.asarray(neighbours.distances).tobytes()


def test_readers_see_one_state_whole_while_writers_append_index_remove_and_compact(here):
    """One reader keeps what it opened; others open the store again and again, and each finds one state's answer."""
    root, seen, errors, over = here / STORE, [], [], threading.Event()
    first = Datastore(root)
    expected = {first.manifest.state: found(first)}
    grow_corpus(here)

    def read():
        try:
            while not over.wait(0.02):
                store = Datastore(root)
                seen.append((store.manifest.state, found(store)))
                store.close()
        except Exception as error:  # whatever it is, the test is to show it
            errors.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for command in (INGEST, INDEX, REMOVE, COMPACT):
            code, told = run(here, *command)
            assert code == 0, told
            for store in (Datastore(root), first):  # the state that is present now, and the first once more
                state = store.manifest.state
                assert found(store) == expected.setdefault(state, found(store))
    finally:
        over.set()
        reader.join()
        first.close()
    assert errors == []
    assert len(expected) >= 5
    assert len({state for state, _ in seen}) > 1
    assert [state for state, answer in seen if state in expected and answer != expected[state]] == []
