"""``knnstore info`` and ``knnstore stores``: what a store is, at once, from its records and file sizes."""

import json
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from knnstore.cli import main
from knnstore.datastore.locking import writing
from knnstore.datastore.store import Datastore
from knnstore.description import describe_store
from knnstore.files import load_json, write_json


@pytest.fixture
def here(built, tmp_path, monkeypatch):
    shutil.copytree(built[0] / "books.knnstore", tmp_path / "books.knnstore")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments, code=0):
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == code, done.output
    return done.stdout if code == 0 else done.stderr


def as_json(*arguments):
    return json.loads(run(*arguments, "--json"))


def test_info_is_one_screen_that_says_what_the_store_is(here):
    text = run("info")
    assert len(text.splitlines()) <= 24
    assert max(map(len, text.splitlines())) <= 100
    for told in ("wiki-lm", "256 int8 from ffn-input", "8 documents in 8 files of books", "116 lists", "nearest keys"):
        assert told in text
    assert "next      knnstore score --store books" in text


def test_every_byte_on_disk_is_in_exactly_one_part(here):
    info = as_json("info", "books")
    on_disk = sum(path.stat().st_size for path in (here / "books.knnstore").rglob("*") if path.is_file())
    assert sum(info["parts"].values()) == info["bytes"] == on_disk
    assert info["bytes_per_key"] == pytest.approx(on_disk / Datastore(here / "books.knnstore").rows)
    assert info["raw_bytes_per_key"] == 256 * 4 + 8
    keys = here / "books.knnstore" / "segments" / "0000" / "keys"
    assert info["parts"]["keys"] == sum(path.stat().st_size for path in keys.rglob("*") if path.is_file())


def test_the_recall_is_the_one_that_the_index_measured(here):
    (check,) = (here / "books.knnstore").glob("index/*/lists/*/check.json")
    assert as_json("info")["index"]["check"] == load_json(check)


def test_info_and_stores_load_neither_torch_nor_faiss(here):
    for command in ("info", "stores"):
        code = (
            "import sys, knnstore.cli\n"
            "try:\n    knnstore.cli.main(sys.argv[1:])\n"
            "finally:\n    print(sorted({'torch', 'transformers', 'faiss', 'dask'} & sys.modules.keys()))"
        )
        done = subprocess.run([sys.executable, "-c", code, command], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "[]"


def test_a_file_that_is_gone_or_cut_short_shows_in_the_health(here):
    assert as_json("info")["health"]["missing_files"] == 0
    keys = here / "books.knnstore" / "segments" / "0000" / "keys" / "c" / "0" / "0"
    keys.write_bytes(keys.read_bytes()[:-1])
    (values,) = (here / "books.knnstore").glob("index/*/lists/0000/values/c/0")
    values.unlink()
    health = as_json("info")["health"]
    assert health["missing_files"] == 2
    assert {path.split("/")[-2:][0] for path in health["missing"]} == {"c", "0"}
    assert "2 of" in run("info")
    assert "2 files missing" in run("stores")


def test_an_ingest_that_has_not_ended_says_how_far_it_is(here):
    root = here / "books.knnstore"
    manifest = root / "knnstore.json"
    write_json(manifest, load_json(manifest) | {"segments": [], "index": None, "indexed": []})
    info = describe_store(root)
    assert (info.state, info.rows_done) == ("begun", info.rows)
    for record in (root / "segments" / "0000" / "commits").glob("keys-*.json"):
        record.unlink()
    assert describe_store(root).rows_done == 0
    text = run("info")
    assert f"begun, 0 of {info.rows:,} keys are written" in text
    assert "again to resume" in text
    assert "begun" in run("stores")


def test_a_writer_is_named_and_a_dead_one_is_not(here):
    root = here / "books.knnstore"
    with writing(root):
        assert "is writing to it" in run("info")
    assert as_json("info")["writer"] is None
    (root / ".lock").write_text('{"host": "gone", "pid": 1, "since": "yesterday"}')
    assert as_json("info")["writer"] is None


def test_the_tuned_setting_is_told_and_a_record_that_is_none_is_damage(here):
    assert as_json("info")["tuned"] is None
    setting = {"k": 512, "lambda_": 0.5, "temperature": 9.5}
    record = {
        "setting": setting,
        "measured": {"lm": 99.5, "constant": 40.25},
        "text": "held-out documents",
        "tokens": 7,
    }
    (here / "books.knnstore" / "tuned.json").write_text(json.dumps(record))
    assert as_json("info")["tuned"]["perplexity"] == 40.25
    assert "k 512, λ 0.5, temperature 9.5 on 7 tokens of held-out documents" in run("info")
    (here / "books.knnstore" / "tuned.json").write_text('{"setting": 3}')
    assert "run 'knnstore tune' again" in run("info", code=1)


def test_stores_lists_all_that_are_here_and_says_why_one_cannot_be_read(here):
    shutil.copytree(here / "books.knnstore", here / "wiki.knnstore")
    (here / "wiki.knnstore" / "knnstore.json").write_text("{")
    assert [(row["name"], row["trouble"] is None) for row in as_json("stores")] == [("books", True), ("wiki", False)]
    text = run("stores")
    assert "unreadable" in text
    assert "wiki.knnstore/knnstore.json" in text
    assert as_json("stores")[0]["rows"] == Datastore(here / "books.knnstore").rows


def test_a_folder_without_stores_says_how_to_make_one(tmp_path):
    assert "knnstore ingest" in run("stores", str(tmp_path))


def test_a_store_that_is_not_there_is_a_usage_error(here):
    assert "no store at nowhere.knnstore" in run("info", "nowhere", code=2)
    assert "give only one" in run("info", "books", "--store", "wiki", code=2)
