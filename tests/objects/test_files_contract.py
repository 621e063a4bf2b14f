"""The verbs of files mean the same on a disk, in a bucket and in the storage of an extension."""

import sys
import uuid
from pathlib import Path

import pytest

from knnstore.errors import CorruptStoreError, LockedError
from knnstore.files import ConditionError, files_of, path_of, read_raw, replacing

sys.path.insert(0, str(Path(__file__).parents[1] / "extensions"))

import in_memory  # noqa: F401 - it registers memory://


@pytest.fixture(params=["disk", "bucket", "memory"])
def place(request, tmp_path):
    """A folder that may not exist yet."""
    if request.param == "disk":
        return tmp_path / "place"
    return request.getfixturevalue("url") if request.param == "bucket" else path_of(f"memory://x/{uuid.uuid4().hex}")


@pytest.fixture
def files(place):
    """The verbs of the place, in which the folder exists."""
    files_of(place).make_folder(place)
    return files_of(place)


def below(files, place):
    return {path.relative_to(place).as_posix(): size for path, size, kind in files.entries(place) if kind is None}


def test_what_is_written_is_read_whole_and_in_ranges(files, place):
    files.write(place / "a", b"0123456789")
    assert files.read(place / "a") == b"0123456789"
    assert files.read(place / "a", 2, 5) == b"234"
    assert files.read(place / "a", 7) == b"789"
    assert bytes(files.load(place / "a")) == b"0123456789"
    with files.open(place / "a") as file:
        assert (file.read(3), file.seek(0, 2)) == (b"012", 10)
    assert files.describe(place / "a").size == 10


def test_an_empty_file_is_a_file(files, place):
    files.write(place / "a", b"")
    assert (files.read(place / "a"), bytes(files.load(place / "a"))) == (b"", b"")
    assert below(files, place) == {"a": 0}


def test_folders_are_named_and_files_are_not(files, place):
    for name in ("b/1", "a/deep/er/2", "3"):
        files.make_folder((place / name).parent)
        files.write(place / name, b"x")
    assert files.folders(place) == ["a", "b"]
    assert files.folders(place / "a") == ["deep"]
    assert files.folders(place / "b") == files.folders(place / "nowhere") == files.folders(place / "3") == []


def test_a_missing_file_has_no_version_and_is_not_found(files, place):
    assert files.version_of(place / "a") is None
    for verb in (files.open, files.describe, files.read_version):
        with pytest.raises(FileNotFoundError):
            verb(place / "a")


def test_of_two_that_replace_the_same_version_one_is_refused(files, place):
    path = place / "a"
    first = files.write(path, b"one", only=None)
    assert files.version_of(path) == first
    with pytest.raises(ConditionError):
        files.write(path, b"other", only=None)
    second = files.replace_only(path, b"two", first)
    assert second != first
    with pytest.raises(ConditionError):
        files.replace_only(path, b"three", first)
    assert files.read_version(path) == (second, b"two")
    assert files.replace_only(path, b"two", first) == second  # an answer that was lost


def test_files_of_a_task_are_replaced_together_or_not_at_all(files, place):
    paths = [place / "a", place / "b"]
    with files.replacing_together(paths) as (first, second):
        first.write(b"1")
        second.write(b"22")
    with pytest.raises(ZeroDivisionError), files.replacing_together(paths) as (first, _):
        first.write(b"not this")
        raise ZeroDivisionError
    with pytest.raises(ZeroDivisionError), replacing(place / "a") as file:
        file.write(b"nor this")
        raise ZeroDivisionError
    assert below(files, place) == {"a": 1, "b": 2}
    assert read_raw(place / "a") == b"1"


def test_a_copy_has_the_bytes(files, place):
    files.write(place / "a", b"123")
    files.copy(place / "a", place / "b")
    assert files.read(place / "b") == b"123"


def test_everything_below_a_folder_is_listed_and_removed(files, place):
    for name in ("x/c/0", "x/c/1", "x/commits/done.json", "y"):
        files.make_folder((place / name).parent)
        files.write(place / name, name.encode())
    assert below(files, place) == {"x/c/0": 5, "x/c/1": 5, "x/commits/done.json": 19, "y": 1}
    assert sorted(path.name for path in place.iterdir()) == ["x", "y"]
    assert [path.relative_to(place).as_posix() for path in place.glob("*/c")] == ["x/c"]
    assert files.remove_below(place / "x", first="commits/done.json") == 29
    assert files.remove_below(place / "x") == 0
    assert below(files, place) == {"y": 1}
    (place / "y").unlink()
    (place / "y").unlink(missing_ok=True)
    assert not (place / "y").exists()


def test_a_chunk_is_mapped_and_a_damaged_one_that_is_fetched_is_refused(files, place):
    import google_crc32c

    rows = bytes(range(256)) * 64
    files.write(place / "c", rows + int(google_crc32c.value(rows)).to_bytes(4, "little"))
    mapped = files.map(place / "c", len(rows))
    mapped.will_need(0, 4096)
    mapped.require(5000, 9000)
    assert (mapped.size, len(mapped.memory), mapped.memory[5000:9000]) == (len(rows) + 4, len(rows), rows[5000:9000])
    if files.fetches and files.describe(place / "c").sums is None:
        files.write(place / "d", rows + b"1234")
        with pytest.raises(CorruptStoreError):
            files.map(place / "d", len(rows)).require(0, 1)


def test_one_writer_holds_the_lock_and_its_name_is_known(files, place):
    path = place / ".lock"
    who = {"host": "here", "pid": 1, "since": "today"}
    assert files.holder(path) is None
    with files.lock(path, who, lambda _: None) as lock:
        lock.require()
        assert files.holder(path) == "process 1 on here since today"
        assert files.token(path)
        with pytest.raises(LockedError, match="process 1 on here since today"), files.lock(path, who, lambda _: None):
            pass
    assert files.holder(path) is None


def test_a_reader_is_seen_where_locks_are_those_of_the_system(files, place):
    files.write(place / "a", b"1")
    assert not files.is_held(place / "a")
    held = files.hold(place / "a")
    assert files.is_held(place / "a") == (held is not None) == (not files.leases)
    if held is not None:
        held.close()
    assert not files.is_held(place / "a")
