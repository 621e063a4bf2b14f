"""Parts of tokens: what is planned, written and summed up."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnstore.corpus import (
    PART_SCHEMA,
    PartSummary,
    ReadOptions,
    Source,
    find_sources,
    opening,
    plan_parts,
    tokenise_part,
    tokens,
)
from knnstore.corpus.parts import Chosen
from knnstore.errors import CorpusError, ModelError, ResourceError, UsageError


def characters(text):
    """A tokenizer: a token a character, but for white space."""
    return [ord(character) for character in text if not character.isspace()]


@pytest.fixture
def corpus(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    (folder / "a.txt").write_bytes(b"\xef\xbb\xbfab\r\nc")
    (folder / "b.jsonl").write_text('{"text": "dé", "id": "x"}\n{"text": ""}\n{"text": " "}\n{"text": "f"}\n')
    (folder / "c.txt").write_bytes(b"g\xff")
    return plan_parts(find_sources([str(folder)]))[0]


def run(part, folder, tokenise=characters, dtype=np.uint16, **options):
    files = folder / "tokens", folder / "documents.parquet"
    return tokenise_part(part, tokenise, ReadOptions(**options), np.dtype(dtype), *files), *files


@given(sizes=st.lists(st.integers(0, 30)), limit=st.integers(1, 40))
def test_parts_hold_consecutive_files_up_to_the_limit(sizes, limit):
    sources = [Source(f"{index}.txt", "text", size) for index, size in enumerate(sizes)]
    parts = plan_parts(sources, limit)
    assert [source for part in parts for source in part.sources] == sources
    assert [part.index for part in parts] == list(range(len(parts)))
    totals = [sum(source.bytes for source in part.sources) for part in parts]
    assert all(total <= limit or len(part.sources) == 1 for total, part in zip(totals, parts, strict=True))
    assert all(total + after.sources[0].bytes > limit for total, after in zip(totals, parts[1:], strict=False))


def test_parts_have_a_limit_of_files_too_and_are_made_as_they_are_asked_for():
    sources = [Source(f"{index}.txt", "text", 1) for index in range(10)]
    parts = plan_parts(sources, part_files=4)
    assert [len(part.sources) for part in parts] == [4, 4, 2]
    assert (parts.bytes, parts.sizes()) == (10, {0: 4, 1: 4, 2: 2})
    left = parts.without({0, 2})
    assert [(part.index, part.sources) for part in left] == [(1, tuple(sources[4:8]))]
    chosen = plan_parts(Chosen(sources, [1, 7]), records=lambda source: (3,) if source.path == "7.txt" else None)
    assert [(part.sources, part.records) for part in chosen] == [((sources[1], sources[7]), (None, (3,)))]


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_a_part_is_written_as_ids_and_a_table(corpus, tmp_path, dtype):
    summary, tokens_file, documents_file = run(corpus, tmp_path, dtype=dtype, errors="replace")
    assert np.fromfile(tokens_file, np.dtype(dtype).newbyteorder("<")).tolist() == characters("abcdéfg\ufffd")
    table = pq.read_table(documents_file)
    assert table.schema.equals(PART_SCHEMA)
    texts = ["ab\nc", "dé", "f", "g\ufffd"]
    folder = tmp_path / "corpus"
    assert table.to_pydict() == {
        "path": [f"{folder}/a.txt", f"{folder}/b.jsonl", f"{folder}/b.jsonl", f"{folder}/c.txt"],
        "record": [None, 0, 3, None],
        "id": [None, "x", None, None],
        "bytes": [len(text.encode()) for text in texts],
        "sha256": [hashlib.sha256(text.encode()).digest() for text in texts],
        "tokens": [3, 2, 1, 2],
        "source_tokens": [None] * 4,  # of pairs of texts alone
    }
    assert summary == PartSummary(documents=4, tokens=8, bytes=12, empty=2, skipped=0, replaced=1)


def test_skipped_documents_leave_no_trace_but_their_count(corpus, tmp_path):
    summary, tokens_file, documents_file = run(corpus, tmp_path, errors="skip")
    assert summary == PartSummary(documents=3, tokens=6, bytes=8, empty=2, skipped=1, replaced=0)
    assert tokens_file.stat().st_size == 12
    assert pq.read_table(documents_file).num_rows == 3


def test_a_second_run_over_leftovers_gives_the_same_bytes(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr(tokens, "_ROW_GROUP", 2)
    files = run(corpus, tmp_path, errors="replace")[1:]
    first = [file.read_bytes() for file in files]
    for file in files:
        file.write_bytes(b"what a killed run left" * 1000)
    run(corpus, tmp_path, errors="replace")
    assert [file.read_bytes() for file in files] == first
    assert pq.ParquetFile(files[1]).num_row_groups == 2


@pytest.mark.parametrize("piece_chars", [1, 2, 3, 100])
def test_pieces_of_a_long_document_are_tokenised_one_by_one_and_joined(corpus, tmp_path, piece_chars):
    seen = []

    def tokenise(text):
        seen.append(text)
        return np.array(characters(text), np.int64)

    summary, tokens_file, _ = run(corpus, tmp_path, tokenise, errors="skip", piece_chars=piece_chars)
    assert max(map(len, seen)) <= piece_chars
    assert "".join(seen) == "ab\ncdé f"
    assert np.fromfile(tokens_file, "<u2").tolist() == characters("abcdéf")
    assert summary.documents == 3


def test_an_error_in_a_document_keeps_its_name(corpus, tmp_path):
    with pytest.raises(CorpusError, match=r"c.txt': byte 1 \(0xff\) is not UTF-8"):
        run(corpus, tmp_path)


def test_a_file_that_cannot_be_read_is_not_taken_for_one_that_cannot_be_written(corpus, tmp_path, monkeypatch):
    def refuse(path, flags):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(opening, "_open_at_once", refuse)
    with pytest.raises(ResourceError, match=r"a.txt' can't be read: Permission denied"):
        run(corpus, tmp_path)


@pytest.mark.parametrize(("dtype", "limit"), [(np.uint16, 65535), (np.uint32, 4294967295)])
def test_a_token_that_does_not_fit_is_refused_not_wrapped(corpus, tmp_path, dtype, limit):
    assert run(corpus, tmp_path, lambda text: [limit, 0], dtype, errors="skip")[0].tokens == 8
    for wrong in (limit + 1, -1):
        with pytest.raises(ModelError, match=f"token {wrong} for .*a.txt', outside 0 to {limit}"):
            run(corpus, tmp_path, lambda text, wrong=wrong: [1, wrong], dtype)


@pytest.mark.parametrize("wrong", [[1.5], [[1, 2]], ["a"], [True]])
def test_a_tokenizer_that_gives_no_ids_is_refused(corpus, tmp_path, wrong):
    with pytest.raises(ModelError, match="instead of a list of ids"):
        run(corpus, tmp_path, lambda text: wrong)


def test_another_dtype_is_refused(corpus, tmp_path):
    with pytest.raises(UsageError, match="int32"):
        run(corpus, tmp_path, dtype=np.int32)


def test_a_file_that_cannot_be_written_is_named(corpus, tmp_path):
    with pytest.raises(ResourceError, match=r"can't write .*none/tokens: No such file"):
        run(corpus, tmp_path / "none")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_told(corpus, tmp_path):
    (tmp_path / "tokens").symlink_to("/dev/full")
    with pytest.raises(ResourceError, match=r"no space left to write .*tokens"):
        run(corpus, tmp_path, errors="skip")
