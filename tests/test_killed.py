"""``kill -9`` of everything, at several moments, and the same command again: the bytes of a run that nothing killed.

Also: the bytes are the same in this process and on one or two Dask workers, whatever the memory.
"""

import shutil

import pytest
from killing import kill_when
from typed import answered, typed

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("made_by_a_small_lm")]

INGEST = ("ingest", "--corpus", "books/", "--chunk-rows", "256", "--context", "128")
INDEX = ("index", "--nlist", "32", "--pq-bytes", "8")


@pytest.fixture(scope="module")
def reference(tiny_corpus, tmp_path_factory):
    """A folder with ``books/`` and its store, made in one process without interruption; and the store before index."""
    folder = tmp_path_factory.mktemp("reference")
    shutil.copytree(tiny_corpus, folder / "books")
    typed(folder, *INGEST, "--workers", "0")
    shutil.copytree(folder / "books.knnstore", folder / "ingested.knnstore")
    typed(folder, *INDEX, "--store", "books", "--workers", "0")
    return folder


@pytest.fixture
def folder(reference, tmp_path):
    shutil.copytree(reference / "books", tmp_path / "books")
    return tmp_path


@pytest.fixture
def ingested(reference, folder):
    shutil.copytree(reference / "ingested.knnstore", folder / "books.knnstore")
    return folder


def commits(folder, pattern="*"):
    return len(list(folder.glob(f"books.knnstore/{pattern}.json")))


def test_an_ingest_killed_again_and_again_leaves_the_bytes_of_one_that_was_not(reference, folder, bytes_of):
    keys = "segments/0000/commits/keys-*"
    moments = [
        lambda: commits(folder, "segments/0000/segment"),
        lambda: commits(folder, keys) >= 2,
        lambda: commits(folder, keys) >= 7,
    ]
    command = (*INGEST, "--workers", "2")
    assert [kill_when(moment, folder, command) for moment in moments] == [True] * len(moments)
    kept = commits(folder, keys)
    report = answered(folder, *INGEST, "--workers", "0")
    chunks = -(-report["rows"] // 256)
    assert (report["tasks_kept"], report["tasks_run"]) == (kept, chunks - kept)  # only what was in flight again
    assert kept >= 7
    assert bytes_of(folder / "books.knnstore") == bytes_of(reference / "ingested.knnstore")


def test_an_index_killed_again_and_again_leaves_the_bytes_of_one_that_was_not(reference, ingested, bytes_of):
    moments = [
        lambda: commits(ingested, "index/*/commits/quantizer"),
        lambda: commits(ingested, "index/*/runs/*/commits/*"),
        lambda: commits(ingested, "index/*/lists/*/commits/lists-*") >= 5,
    ]
    assert [kill_when(moment, ingested, INDEX) for moment in moments] == [True] * len(moments)
    with pytest.raises(AssertionError, match="has no finished index: run 'knnstore index"):
        typed(ingested, "score")
    typed(ingested, *INDEX, "--workers", "0")
    assert bytes_of(ingested / "books.knnstore") == bytes_of(reference / "books.knnstore")


def test_dask_workers_and_the_memory_do_not_change_a_byte(reference, folder, knnstore, bytes_of):
    done = knnstore(folder, *INGEST, "--workers", "1", "--memory", "2GB")
    assert done.returncode == 0, done.stderr
    assert bytes_of(folder / "books.knnstore") == bytes_of(reference / "ingested.knnstore")
    done = knnstore(folder, *INDEX, "--workers", "2", "--memory", "6GB")
    assert done.returncode == 0, done.stderr
    assert bytes_of(folder / "books.knnstore") == bytes_of(reference / "books.knnstore")
