"""The demo's corpus: Python's documentation, the same every time, without importing anything."""

import subprocess
import sys
from pathlib import Path

import pytest

from knnstore.demo_corpus import module_docstrings, python_documents, write_corpus
from knnstore.errors import CorpusError, ResourceError

SMALL = 500_000  # bytes: past the topics, into the standard library


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_two_runs_write_the_same_bytes_and_say_how_many(tmp_path: Path) -> None:
    facts = write_corpus(tmp_path / "one", SMALL)
    assert write_corpus(tmp_path / "two", SMALL) == facts
    written = contents(tmp_path / "one")
    assert written == contents(tmp_path / "two")
    assert (facts.documents, facts.bytes) == (len(written), sum(map(len, written.values())))


def test_a_document_is_named_for_what_it_documents(tmp_path: Path) -> None:
    write_corpus(tmp_path, SMALL)
    assert "Command-line parsing library" in (tmp_path / "stdlib" / "argparse.txt").read_text(encoding="utf-8")
    assert "with" in (tmp_path / "topics" / "with.txt").read_text(encoding="utf-8")


def test_it_stops_at_the_document_that_reaches_the_target(tmp_path: Path) -> None:
    facts = write_corpus(tmp_path, SMALL)
    assert SMALL <= facts.bytes < SMALL + max(len(data) for data in contents(tmp_path).values())


def test_a_smaller_corpus_is_the_beginning_of_a_larger_one(tmp_path: Path) -> None:
    write_corpus(tmp_path / "small", 100_000)
    write_corpus(tmp_path / "large", SMALL)
    assert contents(tmp_path / "small").items() <= contents(tmp_path / "large").items()


def test_the_packages_follow_the_standard_library_one_module_each_in_turn() -> None:
    names: list[str] = []
    for name, _ in python_documents():
        names.append(name)
        if sum(name.startswith("packages/") for name in names) == 8:
            break
    sources = [name.split("/")[0] for name in names]
    assert sources == sorted(sources, key=["topics", "stdlib", "packages"].index)
    assert "packages/numpy/numpy.txt" in names
    assert len({name.split("/")[1] for name in names[-8:]}) == 8


def test_no_long_paragraph_stands_in_two_documents(tmp_path: Path) -> None:
    write_corpus(tmp_path, SMALL)
    owners: dict[str, set[str]] = {}
    for name, data in contents(tmp_path).items():
        for paragraph in data.decode().split("\n\n"):
            owners.setdefault(" ".join(paragraph.split()), set()).add(name)
    assert [text for text, names in owners.items() if len(names) > 1 and len(text) >= 80] == []


def test_writing_again_is_harmless_but_other_text_in_the_folder_is_refused(tmp_path: Path) -> None:
    facts = write_corpus(tmp_path, 20_000)
    assert write_corpus(tmp_path, 20_000) == facts
    (tmp_path / "mine.txt").write_text("a document of somebody else", encoding="utf-8")
    with pytest.raises(CorpusError, match=r"mine\.txt is not part"):
        write_corpus(tmp_path, 20_000)


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    with pytest.raises(ResourceError, match="file"):
        write_corpus(tmp_path / "file", 1000)


def test_nothing_that_is_documented_is_imported(tmp_path: Path) -> None:
    code = f"""
import pathlib, sys
from knnstore.demo_corpus import PACKAGES, write_corpus
facts = write_corpus(pathlib.Path({str(tmp_path)!r}), {SMALL})
print(sorted(({{"this", "antigravity", "turtle", "pydoc_data", "tkinter"}} | set(PACKAGES)) & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


SOURCE = '''"""Module."""
raise SystemExit("imported")
if True:
    def first():
        """First.

        Indented."""
class Second:
    """Second."""
    def method(self):
        """Method."""
        def inner():
            """Inner."""
    def _private(self):
        """Private."""
'''


def test_docstrings_come_in_order_public_ones_only_and_cleaned(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(SOURCE, encoding="utf-8")
    assert module_docstrings(tmp_path / "module.py") == ["Module.", "First.\n\nIndented.", "Second.", "Method."]


@pytest.mark.parametrize("data", [b"print 'Python 2'", b"\x00\x01", b"# coding: nonsense\n", b""])
def test_a_file_that_is_not_python_has_no_docstrings(tmp_path: Path, data: bytes) -> None:
    source = tmp_path / "odd.py"
    source.write_bytes(data)
    assert module_docstrings(source) == []
    assert module_docstrings(tmp_path / "absent.py") == []
