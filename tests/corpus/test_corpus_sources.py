"""Which files an argument stands for."""

import os
import socket
import subprocess
import sys

import pytest

from knnstore.corpus import Source, find_sources, fingerprint, listing
from knnstore.corpus.listing import Listing, Met
from knnstore.errors import CorpusError, DiskFullError, ResourceError


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def paths(*corpus):
    return [source.path for source in find_sources(corpus)]


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
    with pytest.raises(CorpusError, match=r"'c/s.knnstore/' is a datastore"):
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
    write(folder, "c/a.txt", "c/d/e/n.bin")
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


def test_another_kind_of_file_is_refused_by_name_with_the_kinds(folder):
    write(folder, "a.pdf")
    with pytest.raises(CorpusError, match=r"'a.pdf' .*\.txt \.md \.jsonl \.jsonl\.gz \.jsonl\.zst \.parquet"):
        find_sources(["a.pdf"])


def test_nothing_found_says_what_was_looked_for_and_what_was_ignored(folder):
    write(folder, "c/a.pdf", "c/b.doc")
    with pytest.raises(CorpusError, match=r"no text found in 'c': looked for \.txt .* ignored 2 other files"):
        find_sources(["c"])
    with pytest.raises(CorpusError, match="no argument at all"):
        find_sources([])


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
    with pytest.raises(CorpusError, match=r"'c/gone.txt' is not there any more, or is a link to nothing"):
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
