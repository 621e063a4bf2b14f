"""A corpus of everything that can be wrong with text: the right result or one sentence, by each policy."""

import gzip
import json
import os
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from faults.material import make_model, run

from knnstore.corpus import ReadOptions, find_sources, read_documents
from knnstore.datastore.store import Datastore
from knnstore.errors import CorpusError

PLAIN = "a row that is read once is kept by the store and read every time it is asked for\n" * 3
RTL = "שלום עולם — مرحبا بالعالم \u202eقلب\u202c 👩‍👩‍👧‍👦🏴‍☠️ e\u0301\n" * 3


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a tiny LM and an empty ``books/``."""
    make_model(tmp_path / "lm")
    (tmp_path / "books").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ingest(here, *options):
    return run(here, "ingest", "--corpus", "books/", "--workers", "0", "--context", "32", "--holdout", "0", *options)


def fuzz(folder):
    """Files that are read whatever the policy, and files that the policy decides on; no two have the same text."""
    (folder / "plain.txt").write_text(PLAIN)
    (folder / "rtl-emoji.md").write_text(RTL, encoding="utf-8")
    (folder / "bom.txt").write_bytes(b"\xef\xbb\xbf" + f"after a mark {PLAIN}".encode())
    (folder / "crlf.txt").write_bytes(f"on a line {PLAIN}".replace("\n", "\r\n").encode())
    (folder / "empty.txt").write_bytes(b"")
    (folder / "latin1.txt").write_bytes("caf\xe9 ".encode("latin-1") * 4 + PLAIN.encode() + b"\xff\xfe")
    (folder / "nul.txt").write_bytes(PLAIN.encode() + b"\0\0" + PLAIN.encode())
    (folder / "cut-character.txt").write_bytes(PLAIN.encode() + "é".encode()[:1])
    lines = [
        json.dumps({"text": f"a record {PLAIN}"}),
        "{broken",
        json.dumps({"text": 7}),
        '{"text": "a \\ud800 lone surrogate"}',
    ]
    (folder / "lines.jsonl").write_text("\n".join(lines) + "\n")
    texts = pa.array([f"a cell {PLAIN}".encode(), b"not \xff utf-8", None], pa.binary())
    table = pa.table({"text": pa.Array.from_buffers(pa.string(), 3, texts.buffers())})
    pq.write_table(table, folder / "rows.parquet")
    (folder / "notes.pdf").write_bytes(b"%PDF")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "fifo.txt")


def test_strict_stops_at_the_first_thing_that_is_no_text_and_names_it(here):
    fuzz(here / "books")
    code, told = ingest(here)
    assert code == 2
    errors = [line for line in told.split("\n") if line.startswith("Error: ")]
    assert len(errors) == 1
    assert "'books/cut-character.txt': byte 243 (0xc3) is not UTF-8" in errors[0]
    assert "--errors replace or --errors skip" in errors[0]


def test_skip_leaves_out_what_is_unusable_and_counts_it(here):
    fuzz(here / "books")
    code, told = ingest(here, "--errors", "skip", "--json")
    assert code == 0, told
    # cut-character, latin1, nul; three lines; two rows
    assert "left out: 1 document empty, 8 documents skipped as unreadable" in told
    report = json.loads(told.strip().split("\n")[-1])
    assert (report["documents"], report["skipped"], report["empty"], report["replaced"]) == (6, 8, 1, 0)
    paths = [document.path for document in Datastore(here / "books.knnstore").segments[0].documents.origins()]
    assert paths == [
        f"books/{n}" for n in ("bom.txt", "crlf.txt", "lines.jsonl", "plain.txt", "rows.parquet", "rtl-emoji.md")
    ]


def test_replace_mends_text_and_counts_every_character(here):
    fuzz(here / "books")
    for record in ("lines.jsonl", "rows.parquet"):  # what is not a record can't be repaired
        (here / "books" / record).unlink()
    code, told = ingest(here, "--errors", "replace", "--json")
    assert code == 0, told
    # four é and two bytes, two NULs, half an é
    assert "9 undecodable characters replaced" in told
    report = json.loads(told.strip().split("\n")[-1])
    assert (report["documents"], report["skipped"], report["empty"], report["replaced"]) == (7, 0, 1, 9)


def test_what_was_read_comes_back_as_it_was_written_right_to_left_and_emoji_too(here):
    (here / "books" / "rtl-emoji.md").write_text(RTL, encoding="utf-8")
    assert ingest(here)[0] == 0
    segment = Datastore(here / "books.knnstore").segments[0]
    from transformers import AutoTokenizer

    assert AutoTokenizer.from_pretrained(here / "lm").decode(segment.values(0, segment.rows).tolist()) == RTL


CUT = {
    "gz": lambda data: gzip.compress(data)[:-20],
    "zst": lambda data: pa.compress(data, "zstd", asbytes=True)[:-20],
}


@pytest.mark.parametrize("kind", CUT)
@pytest.mark.parametrize("policy", ["strict", "skip"])
def test_a_compressed_file_that_is_cut_short_is_one_sentence_whatever_the_policy(here, kind, policy):
    lines = "".join(json.dumps({"text": f"{PLAIN} {n}"}) + "\n" for n in range(50)).encode()
    (here / "books" / f"a.jsonl.{kind}").write_bytes(CUT[kind](lines))
    code, told = ingest(here, "--errors", policy)
    assert (code, told.count("Error: ")) == (2, 1)
    assert f"'books/a.jsonl.{kind}' is damaged or truncated" in told


def test_a_parquet_file_without_the_column_names_those_that_it_has(here):
    pq.write_table(pa.table({"content": ["x"], "id": [1]}), here / "books" / "a.parquet")
    code, told = ingest(here)
    assert code == 2
    assert "has no column 'text' among ['content', 'id']; name another with --text-field" in told


@pytest.mark.parametrize("what", ["vanishes", "grows", "shrinks"])
def test_a_file_that_changes_under_the_reader_is_one_sentence(here, monkeypatch, what):
    path = here / "books" / "b.txt"
    path.write_text(PLAIN)
    monkeypatch.setattr("knnstore.corpus.opening.BLOCK_BYTES", 64)  # of which the file has several
    (here / "books" / "a.txt").write_text(PLAIN)
    from knnstore.corpus import opening

    before, changed = opening.blocks, []

    def blocks(file, name):
        for block in before(file, name):
            if name.endswith("b.txt" if what != "vanishes" else "a.txt") and not changed:
                changed.append(name)
                if what == "vanishes":
                    path.unlink()
                elif what == "grows":
                    path.write_text(PLAIN + "and more")
                else:
                    os.truncate(path, path.stat().st_size - 5)
            yield block

    monkeypatch.setattr("knnstore.corpus.documents.blocks", blocks)
    code, told = ingest(here)
    assert code == 2
    expected = "no longer exists" if what == "vanishes" else "has changed since it was listed"
    assert f"'books/b.txt' {expected}" in told


def test_links_that_lead_round_and_round_and_pipes_that_never_end_are_passed_over(here):
    books = here / "books"
    (books / "a.txt").write_text(PLAIN)
    (books / "round").symlink_to(books)
    (books / "itself").symlink_to(books / "itself")
    os.mkfifo(books / "pipe.txt")
    code, told = ingest(here)
    assert (code, "corpus    1 file, " in told) == (0, True), told
    (books / "itself.txt").symlink_to(books / "itself.txt")
    code, told = ingest(here, "--overwrite")
    assert (code, told.count("Error: ")) == (1, 1)
    assert "'books/itself.txt' can't be read: Too many levels of symbolic links" in told


MEMORY = """
import resource, sys
from pathlib import Path
from knnstore.corpus import ReadOptions, find_sources, plan_parts, tokenise_part
from knnstore.errors import CorpusError
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    part = plan_parts(find_sources(sys.argv[1:2]))[0]
    summary = tokenise_part(part, lambda text: [len(text) % 7], ReadOptions(), "uint16", Path("t"), Path("d"))
    print(summary.documents, summary.bytes)
except CorpusError as error:
    print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1000)
"""


def read_alone(path):
    """What reading a file in a process of its own says, and the megabytes that it took."""
    done = subprocess.run([sys.executable, "-c", MEMORY, path], capture_output=True, text=True, check=True)
    *told, megabytes = done.stdout.strip().split("\n")
    return "\n".join(told), int(megabytes)


def test_a_document_of_200_megabytes_is_read_in_pieces(here):
    with (here / "books" / "long.txt").open("w") as file:
        for _ in range(200):
            file.write(("x" * 99 + "\n") * 10_000)
    told, megabytes = read_alone("books/long.txt")
    assert told == "1 200000000"
    assert megabytes < 60


def test_a_line_of_json_of_a_gigabyte_is_refused_by_its_length(here):
    """Compressed it is a file of some 40 KB, that anybody could put on the net."""
    sink = pa.BufferOutputStream()
    with pa.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(b'{"text": "')
        for _ in range(1000):
            stream.write(b"a" * 10**6)
        stream.write(b'"}\n')
    (here / "books" / "bomb.jsonl.zst").write_bytes(sink.getvalue().to_pybytes())
    assert (here / "books" / "bomb.jsonl.zst").stat().st_size < 100_000
    told, megabytes = read_alone("books/bomb.jsonl.zst")
    assert "'books/bomb.jsonl.zst', line 1: more than 250000000 bytes; split it or use errors='skip'" in told
    assert megabytes < 800  # the limit and a copy, not the line


def test_a_record_of_just_below_the_limit_is_read(tmp_path):
    (tmp_path / "a.jsonl").write_text(json.dumps({"text": "x" * 400}) + "\n")
    (source,) = find_sources([str(tmp_path / "a.jsonl")])
    size = source.bytes - 1
    (document,) = read_documents(source, ReadOptions(max_record_bytes=size))
    assert "".join(document.pieces) == "x" * 400
    with pytest.raises(CorpusError, match=f"more than {size - 1} bytes"):
        list(read_documents(source, ReadOptions(max_record_bytes=size - 1)))
