"""What lies on the disk between two stages is held against its checksum before anything is made of it."""

import re

import numpy as np
import pytest
from faults.material import INDEX, INGEST, STORE, bytes_of, copy_of, differences, make_corpus, make_model, run
from index_stores import clustered_keys, make_store

from knnstore.datastore.segment import Segment
from knnstore.errors import CorruptStoreError, NumericsError
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.ingestion.tasks import SamplesTask, committed_summaries, write_samples
from knnstore.lm import forward
from knnstore.lm.spec import LmSpec
from knnstore.progress import Reporter
from knnstore.scheduling import Job, SerialRunner


class StoppingRunner(SerialRunner):
    """Runs tasks until one of ``before`` would be run."""

    def __init__(self, before):
        self.before = before

    def run(self, function, given):
        if function.__name__ == self.before:
            raise InterruptedError(self.before)
        yield from super().run(function, given)


class Says(Reporter):
    def __init__(self):
        self.lines = []

    def say(self, text):
        self.lines.append(text)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("name", ["keys", "codes", "values", "rows", "offsets"])
def test_a_bit_that_flips_in_a_run_of_the_index_has_the_run_made_anew(tmp_path, monkeypatch, name):
    monkeypatch.setattr("knnstore.planning._RUN_BYTES", 1)  # several runs
    monkeypatch.setattr("knnstore.planning._MOST_RUNS", 10**6)
    whole, root = (
        make_store(tmp_path / folder, [clustered_keys(1500, 8)], queries=clustered_keys(20, 8, seed=1))
        for folder in ("whole.knnstore", "s.knnstore")
    )
    build_index(whole, IndexOptions(nlist=8), Job())
    with pytest.raises(InterruptedError):
        build_index(root, IndexOptions(nlist=8), Job(StoppingRunner("merge_chunk")))
    (run_files,) = (root.root / "index").glob("*/runs/0000/run-0000-00000001-*")
    flip(run_files / name)
    reporter = Says()
    build_index(root, IndexOptions(nlist=8), Job(reporter=reporter))
    assert any(f"{name} isn't what was written" in line and "made again" in line for line in reporter.lines)
    assert differences(bytes_of(root.root), bytes_of(whole.root)) == []


def test_a_disk_that_keeps_no_run_is_told_after_three_times(tmp_path, monkeypatch):
    store = make_store(tmp_path / "s.knnstore", [clustered_keys(600, 8)])
    monkeypatch.setattr(
        "knnstore.indexes.ivfpq.building.run_damage", lambda check: (check, "keys isn't what was written")
    )
    with pytest.raises(CorruptStoreError, match="3rd time: the disk doesn't keep what is written"):
        build_index(store, IndexOptions(nlist=8), Job())


@pytest.fixture
def begun(tmp_path, monkeypatch):
    """A folder with a corpus whose parts have been tokenised, and no more."""
    here = tmp_path / "here"
    here.mkdir()
    make_model(here / "lm")
    make_corpus(here / "books")
    monkeypatch.setattr("knnstore.corpus.parts.plan_parts.__defaults__", (1, 1, None))  # a part a file
    with monkeypatch.context() as stopped:
        stopped.setattr("knnstore.ingestion.making.assemble", lambda *_: (_ for _ in ()).throw(InterruptedError()))
        with pytest.raises(InterruptedError):
            run(here, *INGEST)
    return here


@pytest.mark.parametrize("kind", ["tokens", "parquet"])
def test_a_bit_that_flips_in_a_part_has_the_part_tokenised_anew(begun, made, kind):
    flip(begun / STORE / f"segments/0000/parts/000002.{kind}")
    for command in (INGEST, INDEX):
        code, told = run(begun, *command)
        assert code == 0, told
    assert differences(bytes_of(begun / STORE), bytes_of(made / STORE)) == []


def test_a_part_that_changes_after_it_was_tokenised_is_named_and_the_next_run_makes_it_anew(begun, monkeypatch):

    def later(segment, parts):
        summaries = committed_summaries(segment, parts)
        flip(begun / STORE / "segments/0000/parts/000002.tokens")
        return summaries

    with monkeypatch.context() as meanwhile:
        meanwhile.setattr("knnstore.ingestion.making.committed_summaries", later)
        code, said = run(begun, *INGEST)
    assert code == 1
    assert re.search(r"000002\.tokens isn't what was written .* tokenises that part again", said)
    assert run(begun, *INGEST)[0] == 0


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("heldout", [False, True])
def test_activations_of_the_samples_that_are_not_finite_are_named(made, tmp_path, monkeypatch, bad, heldout):
    here = copy_of(made, tmp_path / "here")
    segment = Segment(here / STORE / "segments/0000")
    first = segment.documents.heldout_first if heldout else segment.documents.first_row
    document = int(np.flatnonzero(segment.documents.heldout_tokens if heldout else segment.documents.tokens)[-1])
    keys_of = forward.window_keys

    def spoiled(model, windows, *rest, **given):
        for rows, keys in keys_of(model, windows, *rest, **given):
            if (windows.document == document).any():
                keys[rows == first[document] + 7, 3] = bad
            yield rows, keys

    (segment.root / "commits/samples.json").unlink()
    monkeypatch.setattr(forward, "window_keys", spoiled)
    spec = LmSpec(str(here / "lm"), dtype=segment.plan.compute.split()[0])
    told = rf"books/{segment.documents[document].path.split('/')[-1]}, token 7.*an activation is {bad}.*dtype='float32'"
    with pytest.raises(NumericsError, match=told):
        write_samples(SamplesTask(segment.root, spec))


@pytest.mark.parametrize(("dtype", "bad"), [("int8", np.nan), ("int8", -np.inf), ("float16", 70_000.0)])
def test_keys_that_overflow_or_are_not_finite_stop_the_ingest_with_document_and_token(
    made, monkeypatch, tmp_path, dtype, bad
):
    here = copy_of(made, tmp_path / "here")
    keys_of, sampling = forward.window_keys, []

    def spoiled(model, windows, *rest, **given):
        for rows, keys in keys_of(model, windows, *rest, **given):
            if not sampling:  # of which another test tells
                keys[rows == 300, 3] = bad
            yield rows, keys

    samples = write_samples

    def unspoiled(task):
        sampling.append(task)
        try:
            return samples(task)
        finally:
            sampling.clear()

    monkeypatch.setattr(forward, "window_keys", spoiled)
    monkeypatch.setattr("knnstore.ingestion.making.write_samples", unspoiled)
    code, told = run(here, *INGEST, "--holdout", "0", "--key-dtype", dtype, "--store", "other")
    table = Segment(here / "other.knnstore/segments/0000").documents
    document = int(table.locate(np.array([300]))[0])
    assert (code, told.count("Error: ")) == (1, 1)
    where = f"{table[document].path}, token {300 - table.first_row[document]}"
    instead = "--key-dtype int8, or --dtype float32" if dtype == "float16" else "--dtype float32"
    assert f"Error: {where}: an activation is {bad}, which {dtype} can't hold; try {instead}\n" in told
