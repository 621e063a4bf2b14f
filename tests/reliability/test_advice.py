"""What an error advises can be done, and it doesn't call damaged what isn't."""

import contextlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from faults.forking import in_process
from faults.material import INDEX, INGEST, make_corpus, make_model, run
from index_stores import clustered_keys, make_store

from knnstore.errors import DiskFullError
from knnstore.files import write_atomically

NOBODY = 65534


@pytest.fixture
def begun(tmp_path):
    """A folder with a corpus and a tiny LM, and no store."""
    make_model(tmp_path / "lm")
    make_corpus(tmp_path / "books")
    return tmp_path


@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_after_strict_stops_the_policy_that_it_advises_goes_on(begun, policy):
    (begun / "books" / "9.txt").write_bytes(b"caf\xe9 and so on " * 20)
    code, told = run(begun, *INGEST, "--errors", "strict")
    assert code != 0
    assert f"--errors {policy}" in told or policy in told
    code, told = run(begun, *INGEST, "--errors", policy)
    assert code == 0, told


def test_another_field_of_records_goes_on_too(begun):
    shutil.rmtree(begun / "books")
    (begun / "books").mkdir()
    (begun / "books" / "a.jsonl").write_text('{"body": "some words to read"}\n' * 60)
    assert run(begun, *INGEST)[0] != 0
    code, told = run(begun, *INGEST, "--text-field", "body", "--holdout", "0")
    assert (code, "Error" in told) == (1, True)  # another share held out isn't what it was told
    code, told = run(begun, *INGEST, "--text-field", "body")
    assert code == 0, told


def test_a_store_of_removed_documents_alone_is_told_what_to_do_by_every_command(here):
    assert run(here, "remove", "--store", "books", "--document", "books/*")[0] == 0
    code, told = run(here, "info", "--store", "books")
    assert (code, "knnstore restore --store" in told) == (0, True), told
    for command in (INDEX, (*INDEX, "--overwrite"), ("score", "--store", "books"), ("suffixes", "--store", "books")):
        code, told = run(here, *command)
        assert (code in (1, 2), "Error: " in told) == (True, True), told
    assert "knnstore restore" in run(here, *INDEX)[1]
    assert run(here, "restore", "--store", "books")[0] == 0


def test_a_disk_without_room_for_another_file_is_told_as_that(tmp_path):
    (tmp_path / "disk").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=8", "tmpfs", tmp_path / "disk"]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        with pytest.raises(DiskFullError, match="has no free inodes for more files"):
            for number in range(9):
                write_atomically(tmp_path / "disk" / str(number), b"one")
    finally:
        subprocess.run(["umount", tmp_path / "disk"], check=True)


@contextlib.contextmanager
def place():
    """A folder that everybody may enter; those of pytest are its own user's."""
    folder = Path(tempfile.mkdtemp(prefix="knnstore-test-"))
    folder.chmod(0o755)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def as_another(function):
    """What a function gives when nobody's user runs it, or this one where it isn't root."""

    def other():
        if os.getuid() == 0:
            with contextlib.suppress(PermissionError):  # root without capabilities is refused like anybody else
                os.setresuid(NOBODY, NOBODY, NOBODY)
        return function()

    return in_process(other)


@pytest.mark.parametrize(
    "name", ["knnstore.json", "segments/0000/segment.json", "segments/0000/documents.parquet", "segments"]
)
@pytest.mark.parametrize("command", ["info", "verify", "log", "index"])
def test_what_another_user_may_not_read_is_not_called_damaged(name, command):
    with place() as folder:
        make_store(folder / "a.knnstore", [clustered_keys(40, 8)])
        (folder / "a.knnstore" / name).chmod(0)
        code, told = as_another(lambda: run(folder, command, "--store", str(folder / "a.knnstore")))
        (folder / "a.knnstore" / name).chmod(0o755)
    assert "damaged" not in told
    if command != "log" or name == "knnstore.json":
        assert (code, "permission denied" in told.lower()) == (1, True), told


@pytest.mark.parametrize(
    "command", [("export", "--out", "out"), ("verify",), ("index",), ("remove", "--document", "*")]
)
def test_a_folder_that_another_user_may_not_enter_or_write_to_is_one_sentence(command):
    with place() as folder:
        make_store(folder / "a.knnstore", [clustered_keys(40, 8)])
        (folder / "out").mkdir()
        for mode in (0o000, 0o555):
            (folder / "a.knnstore").chmod(mode if command[0] != "export" else 0o755)
            (folder / "out").chmod(mode)
            code, told = as_another(lambda: run(folder, *command, "--store", "a"))
            (folder / "a.knnstore").chmod(0o755)
            (folder / "out").chmod(0o755)
            if (command[0], mode) == ("verify", 0o555):
                assert code == 0, told
            else:
                assert (code in (1, 2), told.count("Error: ")) == (True, 1), told
