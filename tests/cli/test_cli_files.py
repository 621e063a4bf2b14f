"""Corpora as people have them, by the command: what is taken, what is left out, and what is said of it."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from knnstore.cli import main
from knnstore.datastore.store import store_path
from knnstore.errors import UsageError


def run(*arguments, code=0):
    done = CliRunner().invoke(main, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == code, done.stderr
    return done.stdout, done.stderr


def ingest(*arguments, code=0):
    return run("ingest", "--workers", "0", "--corpus", *arguments, code=code)


@pytest.fixture(scope="module")
def made(shared, tmp_path_factory):
    script = shared / "reports" / "files.py"
    if not script.is_file():
        pytest.skip("shared/reports/files.py is not there")
    if shutil.which("zstd") is None:
        pytest.skip("the program zstd is not installed")
    folder = tmp_path_factory.mktemp("published")
    subprocess.run([sys.executable, script], cwd=folder, check=True)
    return folder


@pytest.fixture
def published(made, monkeypatch):
    """The folders that the report's script makes, in the current folder."""
    monkeypatch.chdir(made)


@pytest.mark.usefixtures("published")
@pytest.mark.parametrize(
    ("name", "options", "code", "told"),
    [
        ("c4", [], 0, "1 .json.gz; left out 1 .md (the card of the data)"),
        ("hub", [], 0, "1 .parquet; left out 1 .md (the card of the data)"),
        ("nested", ["--text-field", "doc.text"], 0, " in 8 documents"),
        ("zstlong", [], 2, "needs a window of 2.1 GB"),
        ("pqbin", [], 0, " in 8 documents"),
        ("pqnull", ["--errors", "skip"], 2, "3 documents skipped"),
        ("utf16", [], 0, " in 1 document;"),
    ],
)
def test_files_as_they_are_published(name, options, code, told):
    _, said = ingest(name, *options, code=code)
    assert told in said
    assert name not in ("c4", "hub") or " in 8 documents" in said


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "src").mkdir()
    (tmp_path / "src/a.py").write_text("def mill(river):\n    return river * 2\n" * 9)
    (tmp_path / "src/b.txt").write_text("The old mill by the river stood empty for years. " * 9)
    return tmp_path


def test_the_summary_lists_the_types_that_were_taken_and_left_out(here):
    (here / "out.txt").write_text("Another text altogether, from elsewhere. " * 20)
    (here / "src/link.txt").symlink_to(here / "out.txt")
    out, told = ingest("src", "--json", "--include", "*.py", "--include", "*.txt", "--follow-links", "--exclude", "b*")
    report = json.loads(out)
    assert (report["file_types"], report["linked_files"]) == ({".txt": 1, ".py": 1}, 1)
    assert report["left_out"] == {".txt by --include or --exclude": 1}
    assert "2 files, " in told
    assert "1 .txt, 1 .py, 1 file of them by links out of the corpus; left out 1 .txt by --include or --ex" in told


def test_a_folder_that_is_mostly_of_other_types_stops_the_run_with_the_ways_out(here):
    (here / "src/a.py").write_text("pass\n" * 1000)
    _, told = ingest("src", code=2)
    assert "most of 'src' can't be read" in told
    assert "read them as text with --include '*.py', or skip them with --exclude '*.py'" in told


@pytest.mark.parametrize("command", ["ingest", "score", "repair", "info", "neighbours"])
@pytest.mark.parametrize("url", ["s3://KEY:SECRET@bucket/x", "ftp://KEY:SECRET@host/x", "s3://bucket/x?sig=SECRET"])
def test_secrets_in_the_url_of_a_store_are_refused_and_not_printed(here, command, url):
    text = {"ingest": ["--corpus", "src"], "neighbours": ["text"]}.get(command, [])
    out, told = run(command, "--store", url, *text, code=2)
    assert "credentials in it would be shown and stored" in told
    assert "SECRET" not in out + told


def test_secrets_in_the_url_of_a_corpus_are_refused_and_not_printed(here):
    _, told = ingest("s3://KEY:SECRET@bucket/x", code=2)
    assert "credentials in it would be shown and stored" in told
    assert "SECRET" not in told


def test_a_file_url_of_a_store_is_decoded_and_may_have_no_nul(here):
    assert store_path(f"file://{here}/a%20b%FF").name == os.fsdecode(b"a b\xff.knnstore")
    for url in ("file:///a%00b", "file://elsewhere/a"):
        with pytest.raises(UsageError, match="isn't a local path: give file:///PATH"):
            store_path(url)
    with pytest.raises(UsageError, match="has a NUL"):
        store_path("a\0b")
    _, told = run("info", "--store", "file:///a%00b", code=2)
    assert told.count("Error: ") == 1


def test_names_that_are_not_utf8_are_listed_escaped(here, built):
    name = os.fsdecode(b"b\xffoks.knnstore")
    shutil.copytree(built[0] / "books.knnstore", here / name)
    (here / os.fsdecode(b"br\xffken.knnstore")).mkdir()
    (here / os.fsdecode(b"br\xffken.knnstore") / "knnstore.json").write_text("{")
    out, _ = run("stores")
    assert "b\\udcffoks" in out
    assert "br\\udcffken" in out
    out, _ = run("stores", "--json")
    assert [one["name"] for one in json.loads(out)] == ["br\udcffken", "b\udcffoks"]
    assert "b\\udcffoks" in run("info", "--store", name)[0]
    (here / "src" / os.fsdecode(b"\xff.txt")).write_text("a text")
    _, told = ingest("src", code=2)
    assert "'src/\\udcff.txt' is not UTF-8 and can't be recorded: rename the file or skip it with --exclude" in told
