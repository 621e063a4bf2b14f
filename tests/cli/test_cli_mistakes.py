"""Every mistake of a user, of a file or of a disk is one clear sentence, and never a traceback."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from small_disks import small_disk

from knnstore.cli import main
from knnstore.files import load_json, write_json
from knnstore.lm.spec import SHIPPED_MODELS

WORDS = "Some words of English, as in any book. "
USAGE, FAILURE = 2, 1


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("KNNSTORE_MODEL", "KNNSTORE_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "good.txt").write_text(WORDS * 20)
    return tmp_path


def run(*arguments):
    """The command in this process: exit code, stdout, stderr."""
    done = CliRunner().invoke(main, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def error_of(code, *arguments):
    """The one sentence that the command ends with, of exit code ``code``."""
    exit_code, out, told = run(*arguments)
    assert (exit_code, out) == (code, ""), told
    errors = [line for line in told.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert told.splitlines()[-1] == errors[0]  # nothing after it
    assert "Traceback" not in told
    assert len(errors[0]) > 30
    return errors[0]


def ingest(*options, code=USAGE):
    return error_of(code, "ingest", "--corpus", "books/", "--workers", "0", *options)


def replace_text(folder, data, name="bad.txt"):
    (folder / "books" / "good.txt").unlink()
    (folder / "books" / name).write_bytes(data)


# The corpus


@pytest.mark.parametrize("data", [b"", b"\xef\xbb\xbf"], ids=["empty", "byte order mark"])
def test_an_empty_file_is_no_corpus(here, data):
    replace_text(here, data)
    assert "the corpus holds no text" in ingest()


def test_an_empty_file_among_others_is_counted_and_left_out(here):
    (here / "books" / "empty.txt").write_bytes(b"")
    code, _, told = run("ingest", "--corpus", "books/", "--workers", "0", "--holdout", "0")
    assert code == 0
    assert "left out: 1 document empty" in told


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (bytes(range(256)) * 40, "bad.txt"),
        (b"text and then \x00\x00\x00 nothing", "NUL"),
        ("Où est le café ? ".encode("latin-1") * 50, "UTF-8"),
    ],
    ids=["binary", "NUL", "Latin-1"],
)
def test_text_that_is_no_utf8_is_named_with_the_way_out(here, data, told):
    replace_text(here, data)
    error = ingest()
    assert "bad.txt" in error
    assert told in error
    assert "--errors" in error
    # after the mistake, the same store takes what the message says; its other setting has to be said to be meant
    code, _, said = run("ingest", "--corpus", "books/", "--workers", "0", "--errors", "replace", "--overwrite")
    assert code == 0, said
    assert "replaced" in said


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak memory is read from Linux's /proc")
def test_a_file_of_one_line_of_twenty_megabytes_is_read_in_pieces(here):
    code = "from knnstore.corpus import *; import sys; from pathlib import Path; s, = find_sources(('books/',))\n"
    code += "print(sum(len(p) for d in read_documents(s) for p in d.pieces))\n"
    code += "print(next(line for line in open('/proc/self/status') if 'VmHWM' in line).split()[1])"
    (here / "books" / "good.txt").write_text("word " * 4_000_000)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    characters, kilobytes = map(int, done.stdout.split())
    assert characters == 20_000_000
    assert kilobytes < 300_000


@pytest.mark.parametrize("corpus", ["nowhere", "nowhere/*.txt", "pictures"])
def test_a_corpus_that_is_not_there_or_has_no_text_is_named(here, corpus):
    (here / "pictures").mkdir()
    (here / "pictures" / "cat.png").write_bytes(b"\x89PNG")
    assert corpus.rstrip("/*.tx") in error_of(USAGE, "ingest", "--corpus", corpus, "--workers", "0")
    assert list(here.glob("*.knnstore")) == []


# The model


@pytest.mark.parametrize("command", ["ingest", "score"])
def test_a_missing_model_is_named_with_the_places_that_were_looked_at(here, command, built):
    if command == "score":
        shutil.copytree(built[0] / "books.knnstore", here / "books.knnstore")
    arguments = {"ingest": ("ingest", "--corpus", "books/", "--workers", "0"), "score": ("score",)}[command]
    error = error_of(USAGE, *arguments, "--model", "nonesuch")
    assert "no model 'nonesuch': looked in nonesuch, " in error
    assert str(SHIPPED_MODELS / "nonesuch") in error


@pytest.fixture
def store(here, built):
    shutil.copytree(built[0] / "books.knnstore", here / "books.knnstore")
    return here


def test_another_model_than_the_stores_is_refused_naming_both(store):
    other = store / "other-lm"
    shutil.copytree(SHIPPED_MODELS / "wiki-lm", other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    error = error_of(FAILURE, "score", "--model", "other-lm")
    assert "was made by model 'wiki-lm'" in error
    assert "not by 'other-lm'" in error
    assert "weights differ" in error
    assert "--model" in error


# The store


def test_no_store_here_says_how_to_make_one(here):
    for command in ("index", "score"):
        assert "make one with 'knnstore ingest" in error_of(USAGE, command)
        assert "no store at nowhere.knnstore" in error_of(USAGE, command, "--store", "nowhere")


def test_several_stores_are_listed(store):
    shutil.copytree(store / "books.knnstore", store / "wiki.knnstore")
    for command in ("index", "score"):
        assert "several stores here (books, wiki): say which with --store" in error_of(USAGE, command)


def test_the_only_store_is_taken(store):
    code, out, _ = run("index", "--nlist", "4096", "--json")
    assert code == 0
    assert json.loads(out)["built"] is False


def test_a_store_without_an_index_says_what_to_run_and_exact_needs_none(store):
    manifest = store / "books.knnstore" / "knnstore.json"
    write_json(manifest, load_json(manifest) | {"index": None, "indexed": []})
    assert "has no finished index: run 'knnstore index --store books'" in error_of(FAILURE, "score")
    assert run("score", "--exact", "--k", "8", "--lambda", "0.2", "--temperature", "9", "--quiet")[0] == 0


def test_an_unfinished_store_says_what_to_run(store):
    manifest = store / "books.knnstore" / "knnstore.json"
    write_json(manifest, load_json(manifest) | {"segments": [], "index": None, "indexed": []})
    for command in ("index", "score"):
        assert "hasn't ended: run the same 'knnstore ingest' again" in error_of(FAILURE, command)


@pytest.mark.parametrize("name", ["segments/0000/heldout/c/0", "index/*/lists/0000/keys/c/0/0", "index/*/index.json"])
def test_a_damaged_file_is_named_and_no_number_is_printed(store, name):
    (file,) = (store / "books.knnstore").glob(name)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 0x55
    file.write_bytes(data)
    error = error_of(FAILURE, "score", "--quiet")
    assert str(file.relative_to(store)).split("/c/")[0] in error


def test_a_store_that_someone_writes_to_is_left_alone(store):
    from knnstore.datastore.locking import writing

    with writing(store / "books.knnstore"):
        assert f"is being written by process {os.getpid()}" in error_of(FAILURE, "index", "--store", "books")
        assert f"process {os.getpid()}" in ingest(code=FAILURE)


def test_a_store_of_an_unknown_kind_of_url_is_refused_with_the_kinds_that_are_known(here):
    assert "ftp:// isn't known; give a path, file://, s3://, gs://, az://" in ingest("--store", "ftp://bucket/books")


def test_a_file_url_is_a_path(here):
    code, out, _ = run(
        "ingest", "--corpus", "books/", "--workers", "0", "--holdout", "0", "--store", f"file://{here}/x"
    )
    assert (code, (here / "x.knnstore" / "knnstore.json").is_file()) == (0, True), out


# Numbers that make no sense


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--holdout", "1"), "--holdout 1"),
        (("--holdout", "-0.1"), "--holdout -0.1"),
        (("--context", "300"), "--context 300: wiki-lm takes 1 to 256 positions"),
        (("--stride", "257"), "--stride 257 is not between 1 and the context 256"),
        (("--dtype", "int3"), "--dtype 'int3': give one of"),
        (("--memory", "lots"), "'lots' is not a size"),
    ],
)
def test_an_ingest_option_out_of_range_is_named_with_its_limit(here, options, told):
    assert told in ingest(*options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--k", "0"), "--k 0"),
        (("--lambda", "1"), "--lambda 1"),
        (("--lambda", "nan"), "--lambda nan"),
        (("--temperature", "0"), "--temperature 0"),
        (("--temperature", "inf"), "--temperature inf"),
        (("--nprobe", "0"), "--nprobe 0"),
        (("--exact", "--quantised"), "--exact searches every key"),
        (("--exact", "--nprobe", "3"), "--exact searches every key"),
        (("--text", "nowhere.txt"), "nowhere.txt"),
    ],
)
def test_a_score_option_out_of_range_is_named_with_its_limit(store, options, told):
    assert told in error_of(USAGE, "score", *options)


def test_memory_that_cannot_do_is_refused_before_any_work(store, monkeypatch):
    monkeypatch.setattr("knnstore.scoring.job.model_of_store", None)  # nothing is loaded before the refusal
    assert "is too little" in error_of(FAILURE, "score", "--memory", "300MB")
    assert "is too little" in error_of(FAILURE, "index", "--memory", "300MB", "--nlist", "64")
    # before a worker is started, which the system would kill, and Dask start again, for ever
    assert "needs at least 1.02 GB" in ingest("--memory", "400MB", "--workers", "1", "--overwrite", code=FAILURE)


def test_nothing_held_out_says_to_give_a_text(here):
    assert run("ingest", "--corpus", "books/", "--workers", "0", "--holdout", "0", "--quiet")[0] == 0
    assert "has no held-out documents: give a text to score with --text" in error_of(USAGE, "score", "--exact")


# The disk


def test_a_folder_where_nothing_can_be_written_is_one_sentence(here):
    error = ingest("--store", "/proc/books", code=FAILURE)  # for root, too, who may write to read-only folders
    assert "/proc/books.knnstore" in error


def test_a_full_disk_is_one_sentence_and_with_room_the_same_command_goes_on(here):
    with small_disk(here / "disk", "300k"):
        (here / "disk" / "ballast").write_bytes(bytes(200_000))
        options = ("--store", "disk/books", "--holdout", "0")
        assert "no space left" in (error := ingest(*options, code=FAILURE)) or "are free: make room" in error
        (here / "disk" / "ballast").unlink()
        code, _, told = run("ingest", "--corpus", "books/", "--workers", "0", *options)
        assert code == 0, told


def test_a_disk_mounted_read_only_is_one_sentence(here):
    with small_disk(here / "disk", "1m"):
        subprocess.run(["mount", "-o", "remount,ro", here / "disk"], check=True)
        assert "the file system is read-only" in ingest("--store", "disk/books", code=FAILURE)
