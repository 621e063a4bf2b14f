"""HTML: the main text of a page, where the user chooses pages and the extra is installed."""

import sys

import pytest

from knnstore.corpus import ReadCounts, ReadOptions, Selection, find_sources, fingerprint, html, read_documents
from knnstore.errors import CorpusError, UsageError

PAGE = """<html><head>{head}<title>Title</title><style>p {{ color: red }}</style><script>var secret = 1</script></head>
<body><nav><a href="/">Home</a> <a href="/all">Everything</a></nav>
<main><h1>The mill</h1><p>The old mill &amp; the r\xedver stood empty for years, and nobody came by.</p></main>
<footer>All rights reserved</footer></body></html>"""
TEXT = "The mill\n\nThe old mill & the r\xedver stood empty for years, and nobody came by."


@pytest.fixture
def extra():
    pytest.importorskip("resiliparse", reason="the extra html is not installed")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c").mkdir()
    (tmp_path / "c/notes.txt").write_text("notes " * 200)
    return tmp_path / "c"


def read(**options):
    counts = ReadCounts()
    sources = find_sources(["c"], Selection(include=("*.html", "*.htm.gz")))
    documents = [document for source in sources for document in read_documents(source, ReadOptions(**options), counts)]
    return ["".join(document.pieces) for document in documents], counts


@pytest.mark.parametrize(
    ("head", "encoding"),
    [
        ("", "utf-8"),
        ("", "utf-8-sig"),
        ('<meta charset="iso-8859-1">', "utf-16"),
        ('<meta charset="iso-8859-1">', "latin-1"),
        ('<meta http-equiv="Content-Type" content="text/html; charset=windows-1252">', "cp1252"),
        ('<meta charset="utf-16">', "utf-8"),
        ('<meta charset="no-such-encoding">', "utf-8"),
    ],
)
def test_a_page_gives_its_main_text_in_the_encoding_that_it_declares(extra, folder, head, encoding):
    (folder / "a.html").write_bytes(PAGE.format(head=head).encode(encoding))
    assert read() == ([TEXT], ReadCounts(documents=1))


def test_pages_are_left_out_unless_they_are_chosen(folder):
    (folder / "a.html").write_text(PAGE)
    assert [(one.label, one.files) for one in find_sources(["c"]).left_out] == [(".html", 1)]


def test_a_page_that_cannot_be_decoded_or_is_too_long_is_named(extra, folder, monkeypatch):
    (folder / "a.html").write_bytes(b"<p>caf\xe9</p>")
    with pytest.raises(CorpusError, match=r"a.html': byte 6 \(0xe9\) is not UTF-8"):
        read()
    assert read(errors="skip")[1] == ReadCounts(skipped=1)
    assert read(errors="replace")[0] == ["caf\ufffd"]
    monkeypatch.setattr("knnstore.corpus.html.MOST_BYTES", 10)
    monkeypatch.setattr("knnstore.corpus.documents.MOST_BYTES", 10)
    with pytest.raises(CorpusError, match=r"a.html': more than 10 bytes of HTML"):
        read()


def test_another_version_of_the_extractor_is_another_corpus(extra, folder, monkeypatch):
    (folder / "a.html").write_text(PAGE)
    before = fingerprint(find_sources(["c/a.html"])), fingerprint(find_sources(["c/notes.txt"]))
    monkeypatch.setattr(html, "version", lambda _: "0.0")
    after = fingerprint(find_sources(["c/a.html"])), fingerprint(find_sources(["c/notes.txt"]))
    assert [one == other for one, other in zip(before, after, strict=True)] == [False, True]


def test_without_the_extra_one_sentence_says_what_to_install(folder, monkeypatch):
    (folder / "a.html").write_text(PAGE)
    monkeypatch.setitem(sys.modules, "resiliparse.extract.html2text", None)
    for choose in (lambda: find_sources(["c/a.html"]), read):
        with pytest.raises(UsageError, match=r"isn't installed: pip install 'knnstore\[html\]', or skip the pages"):
            choose()
