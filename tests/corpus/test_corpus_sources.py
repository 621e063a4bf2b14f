"""Which files an argument stands for."""

import gzip
import os
import socket
import subprocess
import sys

import pytest

from knnstore.corpus import Selection, Source, find_pairs, find_sources, fingerprint, listing
from knnstore.corpus.formats import type_of
from knnstore.corpus.listing import Listing, Met
from knnstore.corpus.sources import scope
from knnstore.errors import CorpusError, DiskFullError, ResourceError, UsageError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def paths(*corpus, **selection):
    return [source.path for source in find_sources(corpus, Selection(**selection))]


def kinds(*corpus, **selection):
    return {source.path: source.kind for source in find_sources(corpus, Selection(**selection))}


def counts(types):
    return {one.label: one.files for one in types}


def test_a_folder_gives_its_text_files_sorted_by_path_and_counts_the_others(folder):
    write(folder, "c/b.txt", "c/b/z.md", "c/b-.jsonl", "c/a.parquet", "c/d.jsonl.gz", "c/e.jsonl.zst", "c/x.pdf", "c/y")
    found = find_sources(["c"])
    assert [(source.path, source.kind) for source in found] == [
        ("c/a.parquet", "parquet"),
        ("c/b-.jsonl", "jsonl"),
        ("c/b.txt", "text"),
        ("c/b/z.md", "text"),
        ("c/d.jsonl.gz", "jsonl"),
        ("c/e.jsonl.zst", "jsonl"),
    ]
    assert found.ignored == 2
    assert found[0].bytes == len("c/a.parquet")


def test_paths_sort_as_whole_bytes_not_folder_by_folder(folder):
    write(folder, "c/a/x.txt", "c/a!.txt", "c/é.txt", "c/z.txt")
    assert paths("c") == ["c/a!.txt", "c/a/x.txt", "c/z.txt", "c/é.txt"]


def test_arguments_keep_their_order_and_paths_start_as_they_were_given(folder):
    write(folder, "b/1.txt", "a/1.txt")
    assert paths("b/", "a") == ["b/1.txt", "a/1.txt"]
    assert paths(f"{folder}/b") == [f"{folder}/b/1.txt"]
    assert paths(".") == ["./a/1.txt", "./b/1.txt"]
    assert paths("a/../b/1.txt") == ["a/../b/1.txt"]


def test_hidden_entries_and_datastores_are_passed_over(folder):
    write(folder, "c/.hidden.txt", "c/.git/x.txt", "c/s.knnstore/documents.parquet", "c/a.txt")
    assert paths("c") == paths("c/**/*.txt") == paths("c/*") == ["c/a.txt"]
    assert find_sources(["c"]).ignored == 0
    with pytest.raises(CorpusError, match=r"'c/s.knnstore/' is a store"):
        find_sources(["c/s.knnstore/"])


def test_a_file_met_twice_is_taken_once_under_its_first_name(folder):
    write(folder, "c/b.txt")
    (folder / "c/a.txt").symlink_to("b.txt")
    (folder / "d").symlink_to("c")
    assert paths("c/b.txt", "c", "d", "c/*.txt") == ["c/b.txt"]
    assert paths("d") == ["d/a.txt"]


def test_loops_of_links_end(folder):
    write(folder, "c/a/x.txt", "c/b/y.txt")
    (folder / "c/a/up").symlink_to("..")
    (folder / "c/b/a").symlink_to("../a")
    (folder / "c/a/b").symlink_to("../b")
    (folder / "c/self").symlink_to("self")
    assert paths("c") == paths("c/**") == ["c/a/b/y.txt", "c/a/x.txt"]
    assert paths("c/**/x.txt") == ["c/a/x.txt"]
    assert find_sources(["c"]).ignored == 1


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("c/*.txt", ["c/a.txt"]),
        ("c/*/?.txt", ["c/d/b.txt"]),
        ("c/**/*.txt", ["c/a.txt", "c/d/b.txt", "c/d/e/c.txt"]),
        ("**/[bc].txt", ["c/d/b.txt", "c/d/e/c.txt"]),
        ("c/d*", ["c/d/b.txt", "c/d/e/c.txt"]),
        ("*/d/e/c.txt", ["c/d/e/c.txt"]),
        ("./c/a*", ["./c/a.txt"]),
    ],
)
def test_patterns(folder, pattern, expected):
    write(folder, "c/a.txt", "c/d/b.txt", "c/d/e/c.txt", "c/d/e/n.bin")
    assert paths(pattern) == expected


def test_an_absolute_pattern_and_overlapping_matches_count_each_file_once(folder):
    write(folder, "c/a.txt", "c/d/n.b")
    found = find_sources([f"{folder}/**/*"])
    assert [source.path for source in found] == [f"{folder}/c/a.txt"]
    assert found.ignored == 1


def test_a_name_with_brackets_is_a_file_before_it_is_a_pattern(folder):
    write(folder, "a[1].txt", "a1.txt")
    assert paths("a[1].txt") == ["a[1].txt"]


@pytest.mark.parametrize("missing", ["no.txt", "no/", "", "a\0b.txt"])
def test_a_missing_path_is_named(missing):
    with pytest.raises(CorpusError, match="no such file or folder"):
        find_sources([missing])


def test_a_pattern_that_matches_nothing_is_named():
    with pytest.raises(CorpusError, match=r"'no/\*\.txt' matches nothing"):
        find_sources(["no/*.txt"])


def test_a_file_of_any_type_that_is_named_is_text(folder):
    write(folder, "src/a.py", "src/b.rst", "src/Makefile", "src/c.py.gz", "src/d.html")
    assert kinds("src/a.py", "src/Makefile", "src/c.py.gz") == {
        "src/a.py": "text",
        "src/Makefile": "text",
        "src/c.py.gz": "text",
    }
    assert list(kinds("src/*.py")) == ["src/a.py"]  # as the shell would have expanded it
    assert list(kinds("**/*.py", "src/b.rst")) == ["src/a.py", "src/b.rst"]


def test_other_files_of_pairs_are_refused_by_name_with_the_formats(folder):
    write(folder, "a.pdf")
    with pytest.raises(CorpusError, match=r"'a.pdf' .*\.tsv \.jsonl \.ndjson \.json \.parquet \(also \.gz \.zst"):
        find_pairs(["a.pdf"], [], [])


def test_nothing_found_says_what_was_looked_for_and_what_was_ignored(folder):
    write(folder, "c/a.pdf", "c/b.doc")
    with pytest.raises(CorpusError, match=r"no text found in 'c': looked for \.txt .* left out 1 .doc, 1 .pdf"):
        find_sources(["c"])
    with pytest.raises(CorpusError, match="in no path"):
        find_sources([])


def test_a_data_set_as_a_hub_clones_it_gives_its_data_and_says_what_else_there_was(folder):
    write(folder, "c/README.md", "c/data/README.md", "c/notes.md", "d/README.md")
    (folder / "c/data/a.json.gz").write_bytes(gzip.compress(b'{"text": "x"}\n'))
    (folder / "c/data/b.ndjson").write_text('{"text": "x"}')
    (folder / "c/dataset_infos.json").write_text('{"default": {"features": {"text": {"dtype": "string"}}}}')
    found = find_sources(["c", "d"])
    assert [source.path for source in found] == ["c/data/a.json.gz", "c/data/b.ndjson", "c/notes.md", "d/README.md"]
    assert counts(found.taken) == {".json.gz": 1, ".ndjson": 1, ".md": 2}
    assert counts(found.left_out) == {".md (the card of the data)": 2, ".json without the text field": 1}
    assert "c/README.md" in paths("c", "c/README.md")
    assert paths("c", include=["*.md"]) == ["c/README.md", "c/data/README.md", "c/notes.md"]
    os.chdir("c")
    assert paths("*") == ["data/a.json.gz", "data/b.ndjson", "notes.md"]


def test_json_files_are_data_if_a_record_has_the_field(folder):
    write(folder, "c/a.txt")
    (folder / "c/record.json").write_text('{\n "doc": {"text": "x"}\n}')
    (folder / "c/late.json").write_text('[{"body": 1}, {"doc": {"text": "x"}}]')
    for name, data in {"settings": '{"text": 1}', "empty": "", "number": "7", "broken": '{"a": b}'}.items():
        (folder / f"c/{name}.json").write_text(data)
    found = find_sources(["c"], fields=["doc.text"])
    assert [source.path for source in found] == ["c/a.txt", "c/late.json", "c/record.json"]
    assert counts(found.left_out) == {".json without the text field": 4}
    assert [source.path for source in find_sources(["c/settings.json"], fields=["doc.text"])] == ["c/settings.json"]


def test_it_is_an_error_if_most_of_a_folder_cannot_be_read(folder):
    write(folder, "c/a.txt", "d/a.txt")
    (folder / "c/b.arrow").write_bytes(bytes(2000))
    with pytest.raises(
        CorpusError,
        match=r"most of 'c' can't be read: found 7 B of text, left out 2\.0 KB, 1 \.arrow; .*exclude=\['\*\.arrow'\]",
    ):
        find_sources(["d", "c"])
    assert paths("c", exclude=["*.arrow"]) == paths("c", include=["*.txt"]) == paths("c/*.txt") == ["c/a.txt"]


PROJECT = ["c/a.py", "c/b.rst", "c/d.txt", "c/tests/a.py", "c/src/e.py", "c/src/tests/f.txt", "c/LICENSE"]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        ({"include": ["*.py"]}, ["c/a.py", "c/src/e.py", "c/tests/a.py"]),
        ({"include": ["*.py", "*.rst"], "exclude": ["tests/"]}, ["c/a.py", "c/b.rst", "c/src/e.py"]),
        ({"include": ["/*.py"]}, ["c/a.py"]),
        ({"include": ["src/"]}, ["c/src/e.py", "c/src/tests/f.txt"]),
        ({"include": ["*.py", "!/a.py"]}, ["c/src/e.py", "c/tests/a.py"]),
        ({"include": ["LICENSE"]}, ["c/LICENSE"]),
        ({"exclude": ["f.txt"]}, ["c/d.txt"]),
    ],
)
def test_patterns_as_in_gitignore_choose_files_of_any_type(folder, selection, expected):
    write(folder, *PROJECT)
    (folder / "c/d.txt").write_text("as long as all of the files of other types together " * 2)
    assert paths("c", **selection) == expected
    inside = scope(["c"], Selection(**selection))
    assert [name for name in sorted(PROJECT) if inside(name)] == expected


def test_excluded_folders_are_not_entered_and_excluded_names_are_not_judged(folder):
    write(folder, "c/a.txt", "c/node_modules/b.txt")
    (folder / "c/node_modules/gone.txt").symlink_to("nowhere")
    (folder / "c" / os.fsdecode(b"\xff.txt")).touch()
    found = find_sources(["c"], Selection(exclude=("node_modules", "*[!a].txt")))
    assert [source.path for source in found] == ["c/a.txt"]
    assert counts(found.left_out) == {
        "without a suffix by include= or exclude=": 1,
        ".txt by include= or exclude=": 1,
    }
    with pytest.raises(CorpusError, match=r"left out 1 .txt by include= or exclude="):
        find_sources(["c/a.txt"], Selection(exclude=("a.*",)))


@pytest.mark.parametrize("pattern", ["", "# a comment", "!", "/"])
def test_a_pattern_that_can_match_nothing_is_refused(pattern):
    with pytest.raises(UsageError, match="isn't a pattern for files"):
        Selection(exclude=(pattern,))


def test_links_out_of_the_corpus_are_followed_on_request_and_counted(folder):
    write(folder, "out/a.txt", "out/deep/b.txt", "c/own.txt", "other/x.txt")
    (folder / "c/file.txt").symlink_to("../out/a.txt")
    (folder / "c/inside.txt").symlink_to("own.txt")
    (folder / "c/folder").symlink_to(folder / "out/deep")
    (folder / "c/root").symlink_to("/")  # never walked
    (folder / "c/gone.txt").symlink_to("../nowhere.txt")
    (folder / "c/beside").symlink_to("../other")
    for corpus in (["c"], ["c/**"], ["c/**/*.txt"], ["c/*"]):
        found = find_sources(corpus)
        assert [source.path for source in found] == ["c/inside.txt"]  # which is c/own.txt
        assert counts(found.left_out)[".txt by links out of the corpus"] == 2
        assert found.outside == 0
    assert "c/beside/x.txt" in paths("c", "other")  # which is in the corpus
    (folder / "c/gone.txt").unlink()
    (folder / "c/root").unlink()
    found = find_sources(["c"], Selection(follow_links=True))
    assert [source.path for source in found] == ["c/beside/x.txt", "c/file.txt", "c/folder/b.txt", "c/inside.txt"]
    assert found.outside == 3
    assert paths("c/file.txt", "c/folder") == ["c/file.txt", "c/folder/b.txt"]  # named, so meant


def test_a_folder_of_links_out_of_it_says_how_to_follow_them(folder):
    write(folder, "blobs/a")
    (folder / "snapshot").mkdir()
    (folder / "snapshot/a.txt").symlink_to("../blobs/a")
    with pytest.raises(CorpusError, match=r"left out 1 \.txt by links out of the corpus; follow .*follow_links=True"):
        find_sources(["snapshot"])


def test_what_a_selection_would_not_have_taken_is_out_of_scope(folder):
    write(folder, "c/a.txt", "out/b.txt")
    (folder / "c/link").symlink_to("../out")
    plain = scope(["c", "d/*.txt"], Selection())
    assert all(map(plain, ["c/gone.txt", "c/deep/gone.jsonl.gz", "d/gone.txt"]))
    assert not any(map(plain, ["c/gone.py", "cc/gone.txt", "d/gone.md", "c/link/b.txt"]))
    assert scope(["c"], Selection(follow_links=True))("c/link/b.txt")
    assert not scope(["c"], Selection(exclude=("gone.*",)))("c/gone.txt")
    assert scope(["c"], Selection(include=("*.py",)))("c/gone.py")


def test_a_corpus_may_be_a_file_url(folder):
    write(folder, "a b/x.txt")
    assert paths(f"file://{folder}/a%20b") == [f"{folder}/a b/x.txt"]
    assert paths(f"file://localhost{folder}/a%20b/x.txt") == [f"{folder}/a b/x.txt"]
    for url in ("file:///a%00b", "file://elsewhere/a", "file://"):
        with pytest.raises(UsageError, match="isn't a local path"):
            find_sources([url])


@pytest.mark.parametrize(
    "url", ["s3://KEY:SECRET@bucket/x", "https://u:SECRET@host/x", "s3://b/x?X-Sig=SECRET", "http://[SECRET"]
)
def test_secrets_in_a_url_are_refused_and_not_printed(url):
    for named in (lambda: find_sources([url]), lambda: find_pairs([], [url], [url])):
        with pytest.raises(UsageError) as caught:
            named()
        assert "SECRET" not in str(caught.value)
    with pytest.raises(UsageError, match="'s3://bucket/x' is not on this machine"):
        find_sources(["s3://bucket/x"])


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        (b"a.JSON.GZ", ".json.gz"),
        (b"b/.c/a.Md", ".md"),
        (b"Makefile", ""),
        (b"a.\xff", ""),
        (b"a.\x1b[31m", ""),
        (b"a. long sentence", ""),
        (b"a.tar.xz", ".tar.xz"),
    ],
)
def test_types_are_shown_by_their_suffix(name, shown):
    assert type_of(name) == shown


def test_fifos_and_sockets_are_never_opened(folder):
    write(folder, "c/a.txt")
    os.mkfifo("c/fifo.txt")
    with socket.socket(socket.AF_UNIX) as unix:
        unix.bind("c/socket.txt")
        found = find_sources(["c"])
    assert ([source.path for source in found], found.ignored) == (["c/a.txt"], 2)
    with pytest.raises(CorpusError, match="fifo"):
        find_sources(["c/fifo.txt"])


def test_a_link_to_nothing_is_told_not_ignored(folder):
    write(folder, "c/a.txt")
    (folder / "c/gone.txt").symlink_to("nowhere.txt")
    with pytest.raises(CorpusError, match=r"'c/gone.txt' no longer exists or is a broken link"):
        find_sources(["c"])


def test_a_folder_that_cannot_be_read_is_an_error(folder, monkeypatch):
    write(folder, "c/a.txt", "c/locked/b.txt")
    scandir = os.scandir

    def refuse(path):
        if "locked" in path:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may read everything
    for corpus in ("c", "c/**/*.txt"):
        with pytest.raises(ResourceError, match=r"'c/locked/' can't be read: Permission denied"):
            find_sources([corpus])


def test_a_name_that_is_not_utf8_is_refused_if_it_is_text(folder):
    write(folder, "c/a.txt")
    (folder / "c" / os.fsdecode(b"\xff.bin")).touch()
    assert find_sources(["c"]).ignored == 1
    (folder / "c" / os.fsdecode(b"\xff.txt")).touch()
    with pytest.raises(CorpusError, match="rename the file"):
        find_sources(["c"])


def test_the_memory_of_a_listing_does_not_grow_with_the_files(folder):
    """Seen from outside, since what SQLite holds is no object of Python's."""
    code = (
        "import resource, sys\n"
        "from knnstore.corpus import fingerprint, plan_parts\n"
        "from knnstore.corpus.listing import Listing, Met\n"
        "def met(files):\n"
        "    for number in range(files):\n"
        "        name = f'{number * 7919 % files:07d}'  # in no order\n"
        "        yield Met(0, f'corpus/a-name-of-forty-characters-{name}.txt'.encode(), 'text', 1, name.encode())\n"
        "for files in map(int, sys.argv[1:]):\n"
        "    listing = Listing(met(files))\n"
        "    assert sum(len(part.sources) for part in plan_parts(listing)) == len(listing) == files\n"
        "    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, "60000", "120000"], capture_output=True, text=True, check=True)
    less, more = map(int, done.stdout.split())
    assert more - less < 60_000 * 20  # each name alone has 60 bytes


def test_a_listing_is_a_sequence_and_goes_on_with_what_is_added(folder):
    write(folder, "c/b.txt", "c/a.txt", "d.txt")
    found = find_sources(["c"])
    found.add([Source("d.txt", "aligned", 5, beside="e.txt", beside_bytes=6)])
    assert [source.path for source in found] == ["c/a.txt", "c/b.txt", "d.txt"]
    assert (found[-1].path, found[-1].beside, found[-1].beside_bytes) == ("d.txt", "e.txt", 6)
    assert found[:2] == (found[0], found[1])
    assert found[::2] == (found[0], found[2])
    assert (len(found), found.bytes, found[0].folder) == (3, 7 + 7 + 5 + 6, str(folder))
    with pytest.raises(IndexError):
        found[3]


def test_no_room_for_the_listing_is_one_sentence(monkeypatch):
    limit = "PRAGMA max_page_count = 8;"
    monkeypatch.setattr("knnstore.corpus.listing._TABLES", f"{limit}{listing._TABLES}")
    with pytest.raises(DiskFullError, match=r"files can't be kept on disk: database or disk is full.* set TMPDIR"):
        Listing(Met(0, b"c/%07d.txt" % number, "text", 1, b"%16d" % number) for number in range(10_000))


def test_the_fingerprint_sees_path_kind_size_and_order():
    a, b = Source("a.txt", "text", 1), Source("b.txt", "text", 2)
    different = [[a, b], [b, a], [a], [Source("a.txt", "jsonl", 1), b], [Source("a.txt", "text", 3), b], []]
    assert len({fingerprint(sources) for sources in different}) == len(different)
    assert fingerprint((a, b)) == fingerprint([a, b])
    assert len(fingerprint([])) == 64
