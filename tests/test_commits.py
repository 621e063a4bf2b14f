"""Commit records: done is marked last, and what is marked done is there."""

import json

import google_crc32c
import pytest

from knnstore.datastore.commits import CommitLog
from knnstore.errors import CorruptStoreError, MismatchError


@pytest.fixture
def log(tmp_path):
    log = CommitLog(tmp_path / "commits", tmp_path, "f" * 64)
    log.prepare()
    return log


@pytest.fixture
def files(tmp_path):
    (tmp_path / "keys" / "c").mkdir(parents=True)
    paths = [tmp_path / "keys" / "c" / "0", tmp_path / "values"]
    for path in paths:
        path.write_bytes(b"123456789")
    return paths


def test_a_commit_is_found_again_with_its_facts_and_checksums(log, files):
    log.commit("keys-000000", files, rows=9)
    commit = log.find("keys-000000")
    assert commit.facts == {"rows": 9}
    assert [file.path for file in commit.files] == ["keys/c/0", "values"]
    # CRC-32C's published check value; of the chunk, that of the five bytes before its own
    assert [(file.bytes, file.crc32c) for file in commit.files] == [(9, google_crc32c.value(b"12345")), (9, 0xE3069283)]
    assert log.require("keys-000000") == commit
    assert list(log.all()) == [commit]


def test_what_was_never_committed_has_to_run(log):
    assert log.find("keys-000000") is None
    with pytest.raises(CorruptStoreError, match="keys-000000 is missing or damaged"):
        log.require("keys-000000")


@pytest.mark.parametrize("damage", ["missing", "shorter", "longer", "empty"])
def test_a_task_whose_file_is_not_as_it_was_left_has_to_run_again(log, files, damage):
    log.commit("task", files)
    if damage == "missing":
        files[1].unlink()
    else:
        files[1].write_bytes({"shorter": b"1", "longer": b"1" * 10, "empty": b""}[damage])
    assert log.find("task") is None
    with pytest.raises(CorruptStoreError, match="run the command that made it again"):
        log.require("task")


def test_a_commit_of_other_settings_is_refused_naming_both(log, files):
    log.commit("task", files)
    other = CommitLog(log.folder, log.root, "e" * 64)
    with pytest.raises(MismatchError, match=f"other settings \\({'f' * 12}, now {'e' * 12}\\).*overwrite=True"):
        other.find("task")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        '{"task": "task"}',
        '{"task": "task", "fingerprint": 3, "files": [], "facts": {}}',
        '{"task": "task", "fingerprint": "f", "files": [{"path": "x", "bytes": "9", "crc32c": 0}], "facts": {}}',
    ],
)
def test_a_damaged_record_is_named(log, text):
    (log.folder / "task.json").write_text(text)
    with pytest.raises(CorruptStoreError, match=r"task\.json"):
        log.find("task")


def test_a_file_that_is_not_there_is_never_committed(log, files):
    files[0].unlink()
    with pytest.raises(OSError, match="No such file"):
        log.commit("task", files)
    assert log.find("task") is None
    assert list(log.folder.iterdir()) == []


def test_the_record_of_the_same_files_has_the_same_bytes(log, files):
    log.commit("task", files, rows=1, name="é")
    before = (log.folder / "task.json").read_bytes()
    log.commit("task", files, name="é", rows=1)
    assert (log.folder / "task.json").read_bytes() == before
    assert json.loads(before)["fingerprint"] == "f" * 64
