"""A store that grew has the keys of one that was made at once, byte for byte in float16."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from knnstore.datastore.layout import SEGMENT_PLAN
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore
from knnstore.files import write_json
from knnstore.ingestion.job import ingest
from knnstore.ingestion.plan import IngestOptions
from knnstore.living.compact import CompactOptions, compact
from knnstore.records import to_json
from knnstore.scheduling import Job

WORDS = ["river", "mill", "stone", "bridge", "winter", "captain", "letter", "garden", "market", "silver"]


def write(folder, numbers):
    folder.mkdir(exist_ok=True)
    for number in numbers:
        draw = random.Random(number)
        words = " ".join(draw.choice(WORDS) for _ in range(draw.randrange(1, 24)))
        (folder / f"{number:03}.txt").write_text(f"{number} {words}.\n")


def keys_of(store):
    """The stored keys of every document that is not removed, by its name."""
    datastore, found = Datastore(store), {}
    for segment in datastore.segments:
        table = segment.documents
        gone = datastore.removed.get(segment.root.name, [])
        for document in set(range(len(table))) - set(gone):
            begin = int(table.first_row[document])
            found[str(table[document])] = segment.keys(begin, begin + int(table.tokens[document])).tobytes()
    datastore.close()
    return found


def made(store, **options):
    given = {"corpus": ("notes",), "key_dtype": "float16", "context": 64, "holdout": 0, "dtype": "float32"} | options
    ingest(IngestOptions(store=store, **given), Job())
    return keys_of(Path(f"{store}.knnstore"))


@pytest.fixture(scope="module", autouse=True)
def made_by():
    """The shipped LM: the keys of one as small as that of the other files hardly depend on the padding."""


@pytest.fixture(scope="module")
def at_once(tmp_path_factory):
    """A folder with ``notes/``, 120 short documents, and their keys."""
    folder = tmp_path_factory.mktemp("at-once")
    write(folder / "notes", range(120))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        return made("whole")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_documents_added_in_two_steps_have_the_keys_that_they_have_at_once(here, at_once):
    write(here / "notes", range(80))
    made("grown")
    write(here / "notes", range(120))
    assert made("grown") == at_once


def test_other_chunks_and_other_threads_give_the_same_keys(here, at_once):
    write(here / "notes", range(120))
    before = torch.get_num_threads()
    torch.set_num_threads(2 if before == 1 else 1)
    try:
        assert made("chunks", chunk_rows=1024) == at_once
    finally:
        torch.set_num_threads(before)


def test_what_is_left_after_removals_and_a_compaction_has_the_same_keys(here, at_once):
    write(here / "notes", range(0, 120, 2))
    made("grown")
    for number in range(0, 120, 6):
        (here / "notes" / f"{number:03}.txt").unlink()
    write(here / "notes", range(1, 120, 2))
    made("grown", prune=True)
    compact(here / "grown.knnstore", CompactOptions(), Job())
    keys = keys_of(here / "grown.knnstore")
    assert keys == {name: keys for name, keys in at_once.items() if int(name[-7:-4]) % 6}


def test_a_store_that_was_begun_before_there_was_a_ladder_is_finished_as_it_was_begun(here, at_once, counting_runner):
    write(here / "notes", range(120))
    options = IngestOptions(
        corpus=("notes",), store="old", key_dtype="float16", context=64, holdout=0, dtype="float32", chunk_rows=1024
    )
    with pytest.raises(InterruptedError):
        ingest(options, Job(counting_runner(most=2)))
    root = here / "old.knnstore" / "segments" / "0000"
    assert Segment(root).plan.padding == "ladder"
    assert not list(root.glob("commits/*.json"))
    write_json(root / SEGMENT_PLAN, to_json(replace(Segment(root).plan, padding=None)))
    ingest(options, Job())
    assert Segment(root).plan.padding is None
    different = [name for name, keys in keys_of(here / "old.knnstore").items() if keys != at_once[name]]
    assert 0 < len(different) < 120  # last bits of some: the padding that the batches gave
