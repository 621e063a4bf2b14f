"""Building the exact-match memory of a real store: the same bytes at any memory, and after any interruption."""

import shutil

import numpy as np
import pytest

from knnstore.datastore.store import Datastore
from knnstore.errors import CorruptStoreError, ResourceError
from knnstore.scheduling import Job
from knnstore.suffix_array import build, plan
from knnstore.suffix_array.build import build_suffixes, open_suffixes
from knnstore.suffix_array.contexts import contexts_of
from knnstore.verification.check import verify

ENOUGH = 10**9


@pytest.fixture
def store(built, tmp_path):
    return Datastore(shutil.copytree(built[0] / "books.knnstore", tmp_path / "books.knnstore"))


def files_of(store, bytes_of):
    return bytes_of(store.root / "suffixes")


def test_a_store_without_it_has_none_and_with_it_finds_what_it_holds(store):
    assert open_suffixes(store) is None
    report = build_suffixes(store, Job(memory=ENOUGH))
    assert (report.rows, report.built) == (store.rows, True)
    assert not build_suffixes(store, Job(memory=ENOUGH)).built
    assert verify(store.root).damages == ()
    suffixes = open_suffixes(store)
    segment = store.segments[0]
    first, tokens = (int(column[0]) for column in (segment.documents.first_row, segment.documents.tokens))
    ids = segment.values(first, first + tokens).astype(np.int64)
    places = np.array([40, tokens // 2, tokens - 1])
    longest, _ = suffixes.matches(contexts_of(ids, np.zeros(3, int), places, suffixes.packing.nothing))
    assert (longest.length >= 32).all()
    assert all(ids[place] in followers for place, followers in zip(places, longest.followers, strict=True))


@pytest.mark.parametrize("stop_at", [0, 1, 2, 4])
def test_little_memory_many_chunks_and_an_interruption_leave_the_bytes_of_a_plain_run(
    store, bytes_of, monkeypatch, stop_at
):
    monkeypatch.setattr(plan, "_CHUNK", 1500)
    build_suffixes(store, Job(memory=ENOUGH))
    expected = files_of(store, bytes_of)
    shutil.rmtree(store.root / "suffixes")
    write, calls = build.write_chunk, []

    def dying(*arguments):
        calls.append(1)
        if len(calls) > stop_at:
            raise InterruptedError
        return write(*arguments)

    monkeypatch.setattr(build, "write_chunk", dying)
    monkeypatch.setattr(build, "_SMALLEST_RANGE", 1)
    monkeypatch.setattr(build, "_SORT_BYTES", (ENOUGH - build._BASE_BYTES) // 300)  # ranges of 300 tokens or so
    with pytest.raises(InterruptedError):
        build_suffixes(store, Job(memory=ENOUGH))
    assert open_suffixes(store) is None
    monkeypatch.setattr(build, "write_chunk", write)
    build_suffixes(store, Job(memory=ENOUGH))
    assert files_of(store, bytes_of) == expected


def test_too_little_memory_is_refused_with_what_would_do(store):
    with pytest.raises(ResourceError, match="give 4"):
        build_suffixes(store, Job(memory=10**8))


def test_damage_is_told(store):
    build_suffixes(store, Job(memory=ENOUGH))
    (file,) = (store.root / "suffixes").rglob("order/c/0")
    file.write_bytes(file.read_bytes()[:-9] + bytes(9))
    with pytest.raises(CorruptStoreError, match="damaged"):
        open_suffixes(store).matches(np.zeros((1, 32), np.int64))


def test_hidden_documents_are_not_in_it_and_one_that_has_them_is_not_taken(store):
    build_suffixes(store, Job(memory=ENOUGH))
    segment = store.segments[0]
    masked = store.masked({segment.root.name: np.array([0])})
    assert open_suffixes(masked) is None
    report = build_suffixes(masked, Job(memory=ENOUGH))
    assert report.rows == masked.live_rows == store.rows - int(segment.documents.tokens[0])
    assert open_suffixes(store) is None
    stream = open_suffixes(masked).stream
    kept = np.concatenate(
        [
            [store.manifest.model.vocabulary, *segment.values(first, first + tokens)]
            for first, tokens in zip(segment.documents.first_row[1:], segment.documents.tokens[1:], strict=True)
            if tokens
        ]
    )
    np.testing.assert_array_equal(stream.rows(0, stream.shape[0]), kept)


def test_memories_of_other_states_go_although_their_removal_was_interrupted(store, monkeypatch):
    other = store.root / "suffixes" / ("0" * 16)
    other.mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(plan, "remove_tree", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            build_suffixes(store, Job(memory=ENOUGH))
    assert not build_suffixes(store, Job(memory=ENOUGH)).built
    assert not other.exists()
