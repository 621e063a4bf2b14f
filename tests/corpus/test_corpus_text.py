"""Text files: what is read, how it is cut, what is refused."""

import bz2
import errno
import gzip
import lzma
import os
import tracemalloc
import zlib

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from knnstore.corpus import ReadCounts, ReadOptions, Source, find_sources, opening, read_documents, unpacking
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
    with pytest.raises(CorpusError, match=rf"a.txt': byte {at} \(0xff\) is not UTF-8; .*errors='replace'"):
        read(file)
    file.write_bytes(b"a" * at + b"\0" + b"b" * 9)
    with pytest.raises(CorpusError, match=rf"\(a NUL at byte {at}\)"):
        read(file)


def test_a_character_cut_off_at_the_end_is_named(file):
    file.write_bytes("aé".encode()[:-1])
    with pytest.raises(CorpusError, match="byte 1 "):
        read(file)


def test_a_nul_means_binary(file):
    file.write_bytes(b"\xff\xf0a\0b\0")
    with pytest.raises(CorpusError, match=r"a.txt': it looks binary \(a NUL at byte 3\)"):
        read(file)
    assert read(file, errors="replace") == ([["\ufffd\ufffda\ufffdb\ufffd"]], ReadCounts(documents=1, replaced=4))
    assert read(file, errors="skip") == ([], ReadCounts(skipped=1))


ENCODINGS = ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_utf16_and_utf32_with_a_byte_order_mark_are_read(file, monkeypatch, encoding):
    monkeypatch.setattr(unpacking, "BLOCK_BYTES", 5)  # cuts characters in two
    text = "ab\r\nn\u00e9 \u65e5\u672c \U0001d11e"
    file.write_bytes(("\ufeff" + text).encode(encoding))
    assert read(file) == ([[text.replace("\r\n", "\n")]], ReadCounts(documents=1))


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize(
    "text",
    ["The old mill\n", "\u0421\u0442\u0430\u0440\u0430\u044f \u043c\u0435\u043b\u044c\u043d\u0438\u0446\u0430\n"],
)
def test_utf16_and_utf32_without_a_byte_order_mark_are_named(file, encoding, text):
    file.write_bytes(text.encode(encoding))
    name = encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    for errors in ("strict", "replace"):
        with pytest.raises(
            CorpusError, match=f"looks like {name} without a byte order mark; .* iconv -f {name} -t UTF-8"
        ):
            read(file, errors=errors)
    assert read(file, errors="skip") == ([], ReadCounts(skipped=1))


@pytest.mark.parametrize("damage", [b"\x00\xd8", b"a"], ids=["a lone surrogate", "half a character"])
def test_what_utf16_cannot_hold_is_treated_as_asked(file, damage):
    file.write_bytes("\ufeffab".encode("utf-16-le") + damage)
    with pytest.raises(CorpusError, match=r"a.txt': byte 5 \(0xed\) is not UTF-8"):
        read(file)
    assert read(file, errors="skip") == ([], ReadCounts(skipped=1))
    documents, counts = read(file, errors="replace")
    assert documents[0][0].startswith("ab\ufffd")
    assert counts.replaced > 0


@pytest.mark.parametrize("data", [b"abc\0", b"plain ASCII with one NUL\0 in it all", b"\x00\x01\x02\x03" * 9])
def test_a_file_with_nuls_is_not_taken_for_utf16(file, data):
    file.write_bytes(data)
    with pytest.raises(CorpusError, match="it looks binary"):
        read(file)


PACKERS = {
    "gz": gzip.compress,
    "zst": lambda data: pa.compress(data, "zstd", asbytes=True),
    "bz2": bz2.compress,
    "xz": lzma.compress,
}


@pytest.mark.parametrize("packing", PACKERS)
def test_compressed_text_is_read_whole_and_in_parts(tmp_path, packing):
    file = tmp_path / f"a.md.{packing}"
    pack = PACKERS[packing]
    file.write_bytes(pack(b"one \r\n") + pack(b"two"))  # as `cat` joins compressed files
    assert read(file, piece_chars=5) == ([["one", " \ntwo"]], ReadCounts(documents=1))
    data = pack(bytes(range(32, 127)) * 3000)
    for damaged in (data[: len(data) // 2], data[:-2], b"", b"not compressed", data + b"tail"):
        file.write_bytes(damaged)
        with pytest.raises(CorpusError, match=f"a.md.{packing}' is damaged or truncated: .*; replace it or exclude it"):
            read(file)


def test_padded_xz_is_read(tmp_path):
    (tmp_path / "a.txt.xz").write_bytes(lzma.compress(b"one ") + bytes(8) + lzma.compress(b"two") + bytes(4))
    assert read(tmp_path / "a.txt.xz")[0] == [["one two"]]


def test_compressed_text_that_expands_a_thousandfold_takes_little_memory(tmp_path):
    file = tmp_path / "a.txt.xz"
    packer = lzma.LZMACompressor(preset=0)
    with file.open("wb") as out:
        for _ in range(30):
            out.write(packer.compress(b"word " * 200_000))
        out.write(packer.flush())
    tracemalloc.start()
    try:
        documents = read_documents(find_sources([str(file)])[0])
        assert sum(len(piece) for document in documents for piece in document.pieces) == 30_000_000
        assert tracemalloc.get_traced_memory()[1] < 15_000_000
    finally:
        tracemalloc.stop()


def test_a_long_window_is_named_with_what_to_do(tmp_path):
    long = tmp_path / "a b.txt.zst"
    long.write_bytes(bytes.fromhex("28b52ffd 00 a8 010000") + b"...")  # a frame whose window is 2**31 bytes
    with pytest.raises(
        CorpusError,
        match=r"needs a window of 2\.1 GB .* the limit is 134 MB: .* zstd -d --long=31 -c '.*a b.txt.zst' \|",
    ):
        read(long)
    huge = tmp_path / "a.txt.xz"
    data = bytearray(lzma.compress(b"some text", format=lzma.FORMAT_XZ, preset=0))
    assert lzma.decompress(bytes(data)) == b"some text"
    raw = bytearray(data[12:24])  # the block's header; byte 4 codes the size of its dictionary
    raw[4] = 34  # 512 MiB
    raw[8:12] = zlib.crc32(raw[:8]).to_bytes(4, "little")
    data[12:24] = raw
    huge.write_bytes(bytes(data))
    with pytest.raises(CorpusError, match=r"a.txt.xz' needs a window of more than 134 MB to unpack: recompress it"):
        read(huge)


def test_skipping_gives_nothing_of_a_document_that_is_bad_only_at_its_end(file):
    file.write_bytes(b"a" * (3 * 2**20) + b"\xff")
    assert read(file, errors="skip", piece_chars=100) == ([], ReadCounts(skipped=1))
    file.write_bytes(b"good")
    assert read(file, errors="skip") == ([["good"]], ReadCounts(documents=1))


def test_a_file_that_vanished_or_changed_since_it_was_listed_is_told(file):
    file.write_text("abc")
    source = find_sources([str(file)])[0]
    file.write_text("abcd")
    with pytest.raises(CorpusError, match="has changed since it was listed, from 3 to 4 bytes"):
        next(read_documents(source))
    file.unlink()
    with pytest.raises(CorpusError, match="no longer exists"):
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
