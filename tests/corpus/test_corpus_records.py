"""JSON Lines and Parquet: records, and each way in which one can be wrong."""

import bz2
import gzip
import json
import lzma
import tracemalloc

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from knnstore.corpus import ReadCounts, ReadOptions, Source, find_sources, read_documents
from knnstore.corpus.sampling import sample_text
from knnstore.errors import CorpusError

ENCODERS = {
    "jsonl": bytes,
    "jsonl.gz": gzip.compress,
    "jsonl.zst": lambda data: pa.compress(data, "zstd", asbytes=True),
}


def read(file, **options):
    counts = ReadCounts()
    source = find_sources([str(file)])[0]
    documents = read_documents(source, ReadOptions(**options), counts)
    return [(document.record, document.id, "".join(document.pieces)) for document in documents], counts


@pytest.fixture
def jsonl(tmp_path):
    def make(data, kind="jsonl"):
        file = tmp_path / f"a.{kind}"
        file.write_bytes(ENCODERS[kind](data))
        return file

    return make


@pytest.fixture
def parquet(tmp_path):
    def make(table):
        pq.write_table(table, tmp_path / "a.parquet", row_group_size=2)
        return tmp_path / "a.parquet"

    return make


@pytest.mark.parametrize("kind", ENCODERS)
def test_each_line_is_a_document_whatever_the_compression(jsonl, kind):
    first = b'\xef\xbb\xbf{"text": "a\\r\\nb", "id": 7}\r\n\n  \n'
    data = first + b'{"text": "\\ud834\\udd1e"}\n{"text": ""}\n{"id": "z", "text": "e"}'
    documents, counts = read(jsonl(data, kind))
    assert documents == [(0, "7", "a\r\nb"), (3, None, "𝄞"), (5, "z", "e")]
    assert counts == ReadCounts(documents=3, empty=1)


def test_long_texts_come_in_pieces_and_other_fields_can_be_chosen(jsonl):
    file = jsonl(b'{"body": "ab cd ef", "id": [1]}')
    documents = read_documents(find_sources([str(file)])[0], ReadOptions(text_field="body", piece_chars=5))
    document = next(documents)
    assert (document.id, list(document.pieces)) == ("[1]", ["ab cd", " ef"])


BAD_LINES = [
    (b'{"text": "a"', "not JSON: .* at character 13"),
    (b"[" * 100_000, "JSON nested too deeply"),
    (b"1" * 5000, "not JSON: Exceeds the limit"),
    (b'["text"]', "a JSON list instead of an object"),
    (b'{"body": "\\ud800"}', r"no field 'text' among \['body'\]; .*text_field="),
    (b'{"text": null}', "the field 'text' is a NoneType, not a string"),
    (b'{"text": ["a"]}', "the field 'text' is a list, not a string"),
    (b'{"text": "\xff"}', r"byte 10 \(0xff\) is not UTF-8"),
    (b'{"text": "\0"}', r"looks binary \(a NUL at byte 10\)"),
    (b'{"text": "ab\\u0000"}', "the text has a NUL at character 2"),
    (b'{"text": "a\\ud800"}', "the text has a lone surrogate, which UTF-8 can't encode, at character 1"),
    (b'{"text": "' + b"a" * 10_000 + b'"}', "more than 9000 bytes"),
]


@pytest.mark.parametrize(("bad", "message"), BAD_LINES, ids=[message for _, message in BAD_LINES])
def test_a_bad_line_is_named_in_one_sentence_and_skipped_on_request(jsonl, bad, message):
    bad = bad if len(bad) < 50_000 else bad[:9000]
    file = jsonl(b'{"text": "x"}\n' + bad + b'\n{"text": "y"}\n')
    with pytest.raises(CorpusError, match=f"a.jsonl', line 2: .*{message}") as caught:
        read(file, max_record_bytes=9000)
    assert "\n" not in str(caught.value)
    assert str(caught.value).isascii()
    assert read(file, errors="skip", max_record_bytes=9000) == (
        [(0, None, "x"), (2, None, "y")],
        ReadCounts(documents=2, skipped=1),
    )


def test_replacing_mends_characters_but_not_records(jsonl):
    file = jsonl(b'{"text": "\xffa\\ud800\\u0000", "id": "\\ud800"}')
    assert read(file, errors="replace") == (
        [(0, "\\ud800", "\ufffda\ufffd\ufffd")],
        ReadCounts(documents=1, replaced=3),
    )
    with pytest.raises(CorpusError, match="line 1: not JSON"):
        read(jsonl(b"{"), errors="replace")


def test_a_line_of_just_the_limit_is_read(jsonl):
    line = b'{"text": "abc"}'
    for end in (b"", b"\n"):
        assert read(jsonl(line + end), max_record_bytes=len(line))[0] == [(0, None, "abc")]
        with pytest.raises(CorpusError, match="line 1: more than 14 bytes"):
            read(jsonl(line + end), max_record_bytes=len(line) - 1)


def test_an_over_long_line_is_never_held(jsonl):
    file = jsonl(b'{"text": "' + b"a" * 40_000_000 + b'"}\n{"text": "y"}', "jsonl.gz")
    tracemalloc.start()
    try:
        assert read(file, errors="skip", max_record_bytes=100_000)[0] == [(1, None, "y")]
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("errors", ["strict", "replace", "skip"])
@pytest.mark.parametrize("kind", ["jsonl.gz", "jsonl.zst"])
def test_a_truncated_compressed_file_is_named_in_one_sentence(jsonl, kind, errors):
    whole = b"".join(json.dumps({"text": f"{number**5}"}).encode() + b"\n" for number in range(5000))
    file = jsonl(whole, kind)
    data = file.read_bytes()
    for damaged in (data[: len(data) // 2], data[:-2], b"", b"not compressed", data + b"tail"):
        file.write_bytes(damaged)
        with pytest.raises(CorpusError, match=f"a.{kind}' is damaged or truncated: .*; replace it or exclude it"):
            read(file, errors=errors)


STRINGS = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.binary(),
    pa.large_binary(),
    pa.binary_view(),
    pa.dictionary(pa.int32(), pa.binary()),
]


@pytest.mark.parametrize("kind", STRINGS, ids=str)
def test_each_row_of_a_parquet_file_is_a_document(parquet, kind):
    texts = pa.array(["a", "", "𝄞\r\n", "d", "e"]).cast(kind)
    table = pa.table({"other": [[1]] * 5, "text": texts, "id": pa.array([1, 2, None, 4, 5])})
    documents, counts = read(parquet(table))
    assert documents == [(0, "1", "a"), (2, None, "𝄞\r\n"), (3, "4", "d"), (4, "5", "e")]
    assert counts == ReadCounts(documents=4, empty=1)


def test_a_row_that_is_null_or_not_utf8_is_named_and_skipped_on_request(parquet):
    raw = pa.array([b"ok", b"a\xff", None, b"\0"], pa.binary())
    strings = pa.StringArray.from_buffers(4, raw.buffers()[1], raw.buffers()[2], raw.buffers()[0])
    file = parquet(pa.table({"text": strings}))
    with pytest.raises(CorpusError, match=r"a.parquet', row 1: byte 1 \(0xff\) is not UTF-8"):
        read(file)
    with pytest.raises(CorpusError, match=r"a.parquet', row 2: the column 'text' is null"):
        read(file, errors="replace")
    assert read(file, errors="skip") == ([(0, None, "ok")], ReadCounts(documents=1, skipped=3))


@pytest.mark.parametrize("errors", ["strict", "skip"])
@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"body": ["a"]}, r"has no column 'text' among \['body'\]"),
        ({"text": [1]}, "has int64 in column 'text', not strings"),
        ({"text": [["a"]]}, "has list<.*: string> in column 'text', not strings"),
        ({"text": [{"a": "b"}]}, "has struct<a: string> in column 'text', not strings"),
    ],
)
def test_a_parquet_file_without_the_column_is_refused_whatever_the_policy(parquet, table, message, errors):
    with pytest.raises(CorpusError, match=f"a.parquet' {message}"):
        read(parquet(pa.table(table)), errors=errors)


def test_rows_of_nothing_but_nulls_are_skipped_on_request(parquet):
    file = parquet(pa.table({"text": pa.nulls(3)}))
    with pytest.raises(CorpusError, match=r"row 0: the column 'text' is null"):
        read(file)
    assert read(file, errors="skip") == ([], ReadCounts(skipped=3))


def test_the_text_of_a_parquet_file_may_be_in_a_struct(parquet):
    rows = [{"doc": {"text": "a", "n": 1}, "id": 7}, {"doc": {"text": "b", "n": 2}, "id": 8}]
    assert read(parquet(pa.Table.from_pylist(rows)), text_field="doc.text")[0] == [(0, "7", "a"), (1, "8", "b")]
    table = pa.Table.from_pylist([{"doc.text": "literal", "doc": {"text": "nested"}}])
    assert read(parquet(table), text_field="doc.text")[0] == [(0, None, "literal")]
    table = pa.Table.from_pylist([{"doc": {"text": "a"}}, {"doc": None}])
    assert read(parquet(table), text_field="doc.text", errors="skip")[1] == ReadCounts(documents=1, skipped=1)
    with pytest.raises(CorpusError, match=r"has no column 'doc.body' among \['doc'\]; name another with text_field="):
        read(parquet(table), text_field="doc.body")


@pytest.mark.parametrize(
    ("record", "text"),
    [
        ({"doc": {"text": "nested"}}, "nested"),
        ({"doc.text": "literal", "doc": {"text": "nested"}}, "literal"),
        ({"doc": 5, "doc.text": "literal"}, "literal"),
    ],
)
def test_the_text_of_a_line_may_be_in_an_object_unless_a_field_has_that_very_name(jsonl, record, text):
    assert read(jsonl(json.dumps(record).encode()), text_field="doc.text")[0] == [(0, None, text)]


def test_a_nested_field_that_is_missing_is_named(jsonl):
    for record in ({"doc": {"body": "x"}}, {"doc": "x"}, {"doc": None}):
        with pytest.raises(
            CorpusError, match=r"line 1: no field 'doc.text' among \['doc'\]; name another with text_field="
        ):
            read(jsonl(json.dumps(record).encode()), text_field="doc.text")


RECORDS = [{"text": "a", "id": 1}, {"text": 'b "]},{[" \\', "more": [{"text": "no"}, [1, 2]]}, {"text": "c\nd"}]


@pytest.mark.parametrize("block", [1, 2, 7, 2**20])
@pytest.mark.parametrize(
    "written",
    [
        json.dumps(RECORDS),
        json.dumps(RECORDS, indent=2),
        "\n".join(map(json.dumps, RECORDS)),
        "\n".join(json.dumps(record, indent=1) for record in RECORDS),
    ],
    ids=["an array", "an indented array", "lines", "indented objects"],
)
def test_the_records_of_a_json_file_may_be_written_in_any_way(tmp_path, monkeypatch, written, block):
    monkeypatch.setattr("knnstore.corpus.opening.BLOCK_BYTES", block)
    for number, (name, data) in enumerate(
        {
            "a.json": written.encode(),
            "b.json": b"\xef\xbb\xbf\n " + written.encode(),
            "c.json.gz": gzip.compress(written.encode()),
            "d.json": written.encode("utf-16"),
        }.items()
    ):
        (tmp_path / name).write_bytes(data)
        documents, counts = read(tmp_path / name)
        assert [text for _, _, text in documents] == [record["text"] for record in RECORDS], (number, name)
        assert counts == ReadCounts(documents=3)


def test_a_bad_record_of_an_array_is_named_and_skipped_on_request(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b'[{"text": "a"}, {"text": nope}, 7, "x", {"text": "' + b"b" * 100 + b'"}, {"text": "c"}]')
    with pytest.raises(CorpusError, match=r"a.json', record 2: not JSON"):
        read(file, max_record_bytes=60)
    documents, counts = read(file, errors="skip", max_record_bytes=60)
    assert [text for _, _, text in documents] == ["a", "c"]
    assert counts.skipped == 4
    for cut in (b'[{"text": "a"}', b'[{"text": "a"}, {"te', b'[\n{"text": "a'):
        file.write_bytes(cut)
        with pytest.raises(CorpusError, match=r"a.json' is damaged or truncated: its JSON ends inside a record"):
            read(file, errors="skip")


def test_an_over_long_record_of_an_array_is_never_held(tmp_path):
    file = tmp_path / "a.json.gz"
    file.write_bytes(gzip.compress(b'[{"text": "' + b"a" * 20_000_000 + b'"}, {"text": "y"}]', 1))
    source = Source(str(file), "json", file.stat().st_size)
    tracemalloc.start()
    try:
        documents = read_documents(source, ReadOptions(errors="skip", max_record_bytes=100_000))
        assert ["".join(document.pieces) for document in documents] == ["y"]
        assert tracemalloc.get_traced_memory()[1] < 8_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("kind", ["json", "json.bz2", "ndjson", "ndjson.xz", "txt.gz", "txt", "utf16.txt", "html"])
def test_a_sample_stands_for_its_share_of_the_file(tmp_path, kind):
    if kind == "html":
        pytest.importorskip("resiliparse", reason="the extra html is not installed")
    pack = {"bz2": bz2.compress, "xz": lzma.compress, "gz": gzip.compress}.get(kind.rpartition(".")[2], bytes)
    texts = [f"{number} " + "some words that repeat " * 40 for number in range(400)]
    written = {
        "json": json.dumps([{"text": text} for text in texts]),
        "ndjson": "".join(json.dumps({"text": text}) + "\n" for text in texts),
        "html": f"<html><body><main>{''.join(f'<p>{text}</p>' for text in texts)}</main></body></html>",
    }.get(kind.partition(".")[0], "\n".join(texts))
    file = tmp_path / f"a.{kind}"
    file.write_bytes(pack(written.encode("utf-16" if "utf16" in kind else "utf-8")))
    text, share = sample_text(find_sources([str(file)])[0], ReadOptions())
    assert len(text) / share == pytest.approx(sum(map(len, texts)), rel=0.2)


def test_a_damaged_parquet_file_is_named(parquet):
    file = parquet(pa.table({"text": ["word " * 1000] * 20}))
    data = file.read_bytes()
    for damaged in (b"", data[:-5], data[:-40] + b"\xff" * 32 + data[-8:], data[:60] + b"\xff" * 40 + data[100:]):
        file.write_bytes(damaged)
        with pytest.raises(CorpusError, match=r"a.parquet' is damaged or truncated") as caught:
            read(file)
        assert "\n" not in str(caught.value)
