"""A disk that is full, used up by quota, read-only, not ours or broken: one sentence, and with room the run goes on."""

import errno
import os
import shutil

import numpy as np
import pytest
from faults.layer import FAILURES, Layer
from faults.material import INDEX, INGEST, STORE, bytes_of, copy_of, differences, make_corpus, make_model, run
from small_disks import small_disk

from knnstore.corpus.options import ReadOptions
from knnstore.corpus.sampling import sample_text
from knnstore.corpus.sources import find_sources
from knnstore.errors import DiskFullError, ResourceError
from knnstore.files import write_atomically

SENTENCES = {
    "full": "no space left to ",
    "quota": "your quota is exhausted (the disk has ",
    "read-only": "the file system is read-only; choose another place with --store",
    "denied": "permission denied; ask the owner for permission or choose another place",
    "broken": "Input/output error; check the system log for disk errors, then run the same command again",
}


@pytest.fixture
def begun(tmp_path):
    """A folder with a corpus and a tiny LM, and no store."""
    here = tmp_path / "here"
    here.mkdir()
    make_model(here / "lm")
    make_corpus(here / "books")
    return here


@pytest.mark.parametrize("mode", FAILURES)
def test_whatever_is_wrong_with_the_disk_is_one_sentence_and_the_same_command_goes_on(begun, made, tmp_path, mode):
    for target in (2, 60, 290):  # at the folder, in the tokens, in the keys
        layer = Layer(begun / STORE, target, mode, 0, tmp_path / "after")
        with layer.installed():
            code, told = run(begun, *INGEST)
        assert code == 1
        (sentence,) = [line for line in told.split("\n") if line.startswith("Error: ")]
        assert SENTENCES[mode] in sentence
        assert str(begun) in sentence or STORE in sentence  # which file, or where
    code, told = run(begun, *INGEST)
    assert code == 0, told
    found, expected = bytes_of(begun / STORE), bytes_of(made / STORE)
    assert [name for name in differences(found, expected) if name.startswith("segments/")] == []


@pytest.mark.parametrize(
    ("command", "target", "what"), [(INGEST, 250, "The keys that are left"), (INDEX, 200, "index")]
)
def test_a_disk_that_fills_up_meanwhile_is_told_with_what_is_there_and_what_is_needed(
    begun, tmp_path, command, target, what
):
    if command is INDEX:
        assert run(begun, *INGEST)[0] == 0
    with Layer(begun / STORE, target, "full", 0, tmp_path / "after").installed():
        code, told = run(begun, *command)
    assert code == 1
    assert what in told
    assert " free): make room and run the same command again to resume. " in told
    assert told.rstrip().endswith("B")  # … need about 12.3 KB


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
def test_a_store_that_cannot_be_read_is_one_sentence(made, tmp_path, monkeypatch, number):
    here = copy_of(made, tmp_path / "here")
    before = os.open

    def refuse(path, flags, *rest, **options):
        if str(path).endswith("keys/c/1/0") and "index" in str(path):
            raise OSError(number, os.strerror(number), str(path))
        return before(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", refuse)
    code, told = run(here, "score", "--store", "books", "--k", "4", "--lambda", "0.2", "--temperature", "5")
    assert (code, told.count("Error: ")) == (1, 1)
    assert f"keys/c/1/0: {'permission denied' if number == errno.EACCES else 'Input/output error'}" in told


def test_space_is_looked_at_before_a_single_text_is_tokenised(begun, monkeypatch):
    asked = []
    monkeypatch.setattr("knnstore.ingestion.estimate.free_bytes", lambda _: 5_000)
    monkeypatch.setattr("knnstore.diskspace.free_bytes", lambda _: 5_000)
    monkeypatch.setattr("knnstore.ingestion.making.tokenise", asked.append)
    code, told = run(begun, *INGEST)
    assert (code, asked) == (1, [])
    assert "the keys of about 1," in told  # 1,320 words are 1,400 tokens or so
    assert "tokens, by a sample of the text, need about " in told
    assert "more on disk, but 5.0 KB are free: make room or choose another place with --store" in told


@pytest.mark.parametrize("kind", ["txt", "jsonl", "jsonl.gz", "jsonl.zst", "parquet"])
def test_a_sample_tells_how_much_text_there_is_in_a_file_of_any_kind(tmp_path, kind):
    import gzip
    import json

    import pyarrow as pa
    import pyarrow.parquet as pq

    generator = np.random.default_rng(0)
    texts = [" ".join(map(str, generator.integers(0, 10**6, 200))) for _ in range(400)]
    path, lines = tmp_path / f"a.{kind}", "".join(json.dumps({"text": text, "id": 7}) + "\n" for text in texts)
    if kind == "parquet":
        pq.write_table(pa.table({"text": texts}), path)
    elif kind == "txt":
        path.write_text("\n".join(texts))
    else:
        data = lines.encode()
        packed = {"jsonl": data, "jsonl.gz": gzip.compress(data), "jsonl.zst": pa.compress(data, "zstd", asbytes=True)}
        path.write_bytes(packed[kind])
    (source,) = find_sources([str(path)])
    text, share = sample_text(source, ReadOptions())
    assert len(text) < sum(map(len, texts)) / 2
    assert len(text) / share == pytest.approx(sum(map(len, texts)), rel=0.1)


def test_on_a_small_disk_that_is_really_full_each_stage_stops_and_goes_on_with_room(begun, made):
    with small_disk(begun / "disk", "1m"):
        ballast = begun / "disk" / "ballast"
        for command in (INGEST, INDEX):
            line = (
                [*command, "--store", "disk/books"]
                if command is INGEST
                else ["disk/books" if w == "books" else w for w in command]
            )
            free = shutil.disk_usage(begun / "disk").free
            ballast.write_bytes(bytes(free - 40_000))
            code, told = run(begun, *line)
            assert code == 1
            assert "need about " in told
            assert "no space left" in told or " are free: make room" in told
            ballast.unlink()
            code, told = run(begun, *line)
            assert code == 0, told
        assert differences(bytes_of(begun / "disk" / STORE), bytes_of(made / STORE)) == []


def test_full_and_quota_are_errors_of_their_own_that_a_program_can_tell(tmp_path, monkeypatch):
    for number, kind in ((errno.ENOSPC, DiskFullError), (errno.EDQUOT, DiskFullError), (errno.EIO, ResourceError)):
        monkeypatch.setattr(os, "fsync", lambda _, number=number: (_ for _ in ()).throw(OSError(number, "no")))
        with pytest.raises(ResourceError) as told:
            write_atomically(tmp_path / "a", b"1")
        assert type(told.value) is kind
        assert list(tmp_path.iterdir()) == []  # nothing is left half-written
