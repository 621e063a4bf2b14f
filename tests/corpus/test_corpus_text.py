"""Text files: what is read, how it is cut, what is refused."""

import errno
import os
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knnstore.corpus import ReadCounts, ReadOptions, Source, find_sources, opening, read_documents
from knnstore.corpus.text import cut_pieces
from knnstore.errors import CorpusError, ResourceError, UsageError

FIXTURE = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=150)
texts = st.lists(
    st.sampled_from(["\r\n", "\r", "\n", " ", "a", "bc", "é", "\ufeff", "\ufffd", "𝄞", "\x0b"]) | st.text()
)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "a.txt"


def read(file, **options):
    """What the file's documents hold, as lists of pieces, and the counts."""
    counts = ReadCounts()
    source = find_sources([str(file)])[0]
    return [list(document.pieces) for document in read_documents(source, ReadOptions(**options), counts)], counts


@FIXTURE
@given(parts=texts, piece_chars=st.integers(1, 20), block=st.integers(1, 9))
def test_the_pieces_joined_are_what_python_reads(file, monkeypatch, parts, piece_chars, block):
    monkeypatch.setattr(opening, "BLOCK_BYTES", block)
    data = "".join(parts).replace("\0", "").encode()  # a BOM is among the parts
    file.write_bytes(data)
    expected = file.read_text(encoding="utf-8").removeprefix("\ufeff")
    documents, counts = read(file, piece_chars=piece_chars)
    pieces = documents[0] if documents else []
    assert "".join(pieces) == expected
    assert all(0 < len(piece) <= piece_chars for piece in pieces)
    assert len(pieces) == 1 or not 0 < len(expected) <= piece_chars
    assert counts == ReadCounts(documents=int(bool(expected)), empty=int(not expected))


@FIXTURE
@given(
    data=st.lists(
        st.sampled_from([b"\xef\xbb\xbf", b"\xef\xbf\xbd", b"\xef", b"\xbf", b"\xf0\x9d", b"a", b"\r", b"\n", b"\0"])
    )
)
def test_replacing_reads_as_python_does_and_counts_what_it_put(file, monkeypatch, data):
    monkeypatch.setattr(opening, "BLOCK_BYTES", 2)
    file.write_bytes(b"".join(data))
    expected = file.read_text(encoding="utf-8", errors="replace").removeprefix("\ufeff").replace("\0", "\ufffd")
    documents, counts = read(file, errors="replace")
    assert "".join(map("".join, documents)) == expected
    kept = b"".join(data).count(b"\xef\xbf\xbd")
    assert counts.replaced == expected.count("\ufffd") - kept


@given(parts=texts, piece_chars=st.integers(1, 12), seed=st.randoms())
def test_the_cuts_depend_on_the_text_alone(parts, piece_chars, seed):
    text = "".join(parts)
    at = sorted(seed.randrange(len(text) + 1) for _ in range(5))
    blocks = [text[a:b] for a, b in zip([0, *at], [*at, len(text)], strict=True)]
    assert list(cut_pieces(blocks, piece_chars)) == list(cut_pieces([text], piece_chars))


@pytest.mark.parametrize(
    ("text", "limit", "pieces"),
    [
        ("abcdefgh", 8, ["abcdefgh"]),
        ("ab cd\nef gh", 8, ["ab cd", "\nef gh"]),  # a line break goes before a later space
        ("ab\n\ncd", 4, ["ab", "\n\ncd"]),  # never between line breaks
        ("ab\n\ncd", 5, ["ab", "\n\ncd"]),
        ("ab cd ef", 6, ["ab cd", " ef"]),
        ("ab   cdef", 6, ["ab", "   cde", "f"]),  # before all of the spaces
        ("abcdefgh", 3, ["abc", "def", "gh"]),
        ("abc d", 3, ["abc", " d"]),  # the break may stand just beyond the limit
        ("      a", 3, ["   ", "   ", "a"]),
    ],
)
def test_a_long_text_is_cut_before_white_space(text, limit, pieces):
    assert list(cut_pieces([text], limit)) == pieces


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf"])
def test_a_file_without_text_is_counted_as_empty(file, data):
    file.write_bytes(data)
    assert read(file) == ([], ReadCounts(empty=1))


@pytest.mark.parametrize("at", [0, 3, 2**20 - 1, 2**20, 2**20 + 5])
def test_a_byte_that_is_no_text_is_named_by_its_offset(file, at):
    file.write_bytes(b"a" * at + b"\xff" + b"b" * 9)
    with pytest.raises(CorpusError, match=rf"a.txt': byte {at} \(0xff\) is not UTF-8; .*--errors replace"):
        read(file)
    file.write_bytes(b"a" * at + b"\0" + b"b" * 9)
    with pytest.raises(CorpusError, match=rf"\(a NUL at byte {at}\)"):
        read(file)


def test_a_character_cut_off_at_the_end_is_named(file):
    file.write_bytes("aé".encode()[:-1])
    with pytest.raises(CorpusError, match="byte 1 "):
        read(file)


def test_a_nul_means_binary(file):
    file.write_bytes(b"\xff\xfea\0b\0")
    with pytest.raises(CorpusError, match=r"a.txt': it looks binary \(a NUL at byte 3\)"):
        read(file)
    assert read(file, errors="replace") == ([["\ufffd\ufffda\ufffdb\ufffd"]], ReadCounts(documents=1, replaced=4))
    assert read(file, errors="skip") == ([], ReadCounts(skipped=1))


def test_skipping_gives_nothing_of_a_document_that_is_bad_only_at_its_end(file):
    file.write_bytes(b"a" * (3 * 2**20) + b"\xff")
    assert read(file, errors="skip", piece_chars=100) == ([], ReadCounts(skipped=1))
    file.write_bytes(b"good")
    assert read(file, errors="skip") == ([["good"]], ReadCounts(documents=1))


def test_a_file_that_vanished_or_changed_since_it_was_listed_is_told(file):
    file.write_text("abc")
    source = find_sources([str(file)])[0]
    file.write_text("abcd")
    with pytest.raises(CorpusError, match="has changed since it was listed: it had 3 bytes and has 4"):
        next(read_documents(source))
    file.unlink()
    with pytest.raises(CorpusError, match="is not there any more"):
        next(read_documents(source))
    os.mkfifo(file)
    with pytest.raises(CorpusError, match="has changed"):
        next(read_documents(source))


def test_a_file_that_grows_while_it_is_read_is_told(file):
    file.write_text("a" * 3 * 2**20)
    source = find_sources([str(file)])[0]
    pieces = next(read_documents(source, ReadOptions(piece_chars=1000))).pieces
    with file.open("a") as more:
        more.write("b")
    with pytest.raises(CorpusError, match="has changed"):
        list(pieces)


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_what_the_system_refuses_is_a_resource_error(file, monkeypatch, number):
    file.write_text("abc")

    def refuse(path, flags):
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(opening, "_open_at_once", refuse)
    with pytest.raises(ResourceError, match=f"a.txt' can't be read: {os.strerror(number)}"):
        read(file)


def test_memory_stays_flat_over_one_line_of_forty_megabytes(file):
    with file.open("wb") as out:
        for _ in range(40):
            out.write(b"word " * 200_000)
    source = Source(str(file), "text", 40_000_000)
    tracemalloc.start()
    try:
        document = next(read_documents(source, ReadOptions(piece_chars=1_000_000)))
        assert sum(len(piece) for piece in document.pieces) == 40_000_000
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "wrong", [{"errors": "ignore"}, {"piece_chars": 0}, {"max_record_bytes": 0}, {"text_field": ""}]
)
def test_options_that_cannot_be_are_refused_when_made(wrong):
    with pytest.raises(UsageError, match=next(iter(wrong))):
        ReadOptions(**wrong)
