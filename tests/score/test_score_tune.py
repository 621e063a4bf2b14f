"""Neighbours saved once, a mixture tuned from the file, and what score then does with it: real LM, real store."""

import contextlib
import json
import os
import shutil

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from knnstore.cli import main
from knnstore.datastore.locking import writing

pytestmark = pytest.mark.slow

CACHE = ("--cache", "64")


def run(folder, *arguments):
    with contextlib.chdir(folder):
        return CliRunner().invoke(main, list(map(str, arguments)))


def result(folder, *arguments):
    done = run(folder, *arguments, "--json", "--quiet")
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def folder(built, tmp_path_factory):
    """The built store with an exact-match memory, neighbours of ``texts/`` saved and tuned from, and ``new.txt``."""
    folder = tmp_path_factory.mktemp("tuning")
    shutil.copytree(built[0] / "books.knnstore", folder / "books.knnstore")
    texts = folder / "texts"
    texts.mkdir()
    for number, path in enumerate(sorted((built[0] / "books").iterdir())[:6]):
        # half known, half not: words of the store in another order
        words = path.read_text().split()
        (texts / f"{number}.txt").write_text(" ".join(words[:120] + words[::-1][:80]))
    (folder / "new.txt").write_text((texts / "0.txt").read_text()[50:500])
    return folder


@pytest.fixture(scope="module")
def saved(folder):
    return result(folder, "score", "--text", "texts", *CACHE, "--save-neighbours", "n.parquet")


@pytest.fixture(scope="module")
def tuned(folder, saved):
    before = result(folder, "tune", "n.parquet", "--dry-run")
    assert not (folder / "books.knnstore" / "tuned.json").exists()
    assert run(folder, "suffixes").exit_code == 0
    assert "already finished" in run(folder, "suffixes").stdout
    after = result(folder, "tune", "n.parquet", "--adaptive")
    return before, after


def test_a_store_that_another_process_writes_is_not_tuned(folder, tuned):
    with writing(folder / "books.knnstore"):
        refused = run(folder, "tune", "n.parquet", "--quiet")
        assert run(folder, "tune", "n.parquet", "--dry-run", "--quiet").exit_code == 0
    assert refused.exit_code == 1
    assert f"is being written by process {os.getpid()}" in refused.stderr


def test_the_file_has_every_token_and_its_neighbours(folder, saved):
    file = pq.ParquetFile(folder / "n.parquet")
    table = file.read()
    assert table.num_rows == saved["tokens"] + saved["tuned_on"]["tokens"]
    distances = table.column("distances").to_pylist()
    assert all(row == sorted(row) for row in distances[:50])
    assert len(distances[0]) == len(table.column("values")[0]) == 1024
    assert not list(folder.glob("*.tmp"))


def test_tuning_from_the_file_is_tuning_from_the_search(folder, saved, tuned):
    everything = result(
        folder, "score", "--text", "texts", "--k", saved["knn"]["k"], "--lambda", "0", "--temperature", "1"
    )
    assert tuned[0]["perplexity"]["lm"] == pytest.approx(everything["base"]["perplexity"], rel=1e-7)
    k, temperature = tuned[0]["k"], tuned[0]["temperature"]
    grid = tuned[0]["grid"]
    place = grid["k"].index(k), grid["temperature"].index(temperature)
    fixed = ("--k", k, "--temperature", temperature, "--lambda", grid["lambda"][place[0]][place[1]])
    scored = result(folder, "score", "--text", "texts", *fixed)
    assert scored["knn"]["perplexity"] == pytest.approx(grid["perplexity"][place[0]][place[1]], rel=1e-4)


def test_a_gate_is_better_than_constants_on_documents_that_it_has_not_seen(tuned):
    perplexity = tuned[1]["perplexity"]
    assert tuned[1]["adaptive"] is True
    assert perplexity["constant"] < 0.9 * perplexity["lm"]
    assert perplexity["gate"] < perplexity["constant"]


def test_score_takes_what_was_tuned_and_says_so(folder, tuned):
    scored = result(folder, "score", "--text", "new.txt")
    assert scored["setting_from"].startswith("stored by knnstore tune")
    assert (scored["knn"]["k"], scored["knn"]["cache"]) == (tuned[1]["k"], 64)
    assert scored["knn"]["adaptive"] is True
    assert scored["constant"]["perplexity"] != scored["knn"]["perplexity"]
    constant = result(folder, "score", "--text", "new.txt", "--constant")
    assert constant["knn"]["perplexity"] == pytest.approx(scored["constant"]["perplexity"], rel=1e-9)
    given = [f"--{name}={constant['knn'][name]}" for name in ("k", "lambda", "temperature", "cache")]
    given += [f"--cache-{name}={constant['knn'][f'cache_{name}']}" for name in ("weight", "temperature")]
    by_hand = result(folder, "score", "--text", "new.txt", *given)
    assert by_hand["knn"]["perplexity"] == pytest.approx(constant["knn"]["perplexity"], rel=1e-9)
    assert result(folder, "score", "--text", "new.txt", "--retune")["tuned_on"]["tokens"] > 0
    assert "by the gate" in run(folder, "score", "--text", "new.txt").stdout


def test_what_was_tuned_on_is_never_reported_on(folder, tuned):
    mixed = result(folder, "score", "--text", "texts", "new.txt")
    assert mixed["documents"] == 1
    assert "6 documents, 6 of which are left out here" in mixed["setting_from"]
    again = run(folder, "score", "--text", "texts")
    assert "tuning again" in again.stderr
    assert run(folder, "score", "--text", "texts", "--tuned").exit_code == 2


def test_a_gate_without_its_exact_match_memory_gives_way_to_constants(folder, tuned, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    shutil.rmtree(tmp_path / "copy" / "books.knnstore" / "suffixes")
    done = run(tmp_path / "copy", "score", "--text", "new.txt", "--json")
    assert "run 'knnstore suffixes'" in done.stderr
    assert json.loads(done.stdout)["knn"]["adaptive"] is False


def test_another_lms_neighbours_and_files_that_are_none_are_refused(folder, tuned, tmp_path):
    work = tmp_path / "work"
    shutil.copytree(folder, work)
    record = work / "books.knnstore" / "tuned.json"
    right = {name: value for name, value in json.loads(record.read_text()).items() if name != "crc32c"}
    for wrong, message in (
        (right | {"weights": "0" * 64}, "tune again"),
        (right | {"version": 2}, "version 2"),
        (right | {"gate": right["gate"] | {"hidden": []}}, "fit"),
        (right | {"more": 1}, "unknown"),
    ):
        record.write_text(json.dumps(wrong))
        done = run(work, "score", "--text", "new.txt")
        assert done.exit_code == 1
        assert message in done.stderr
    record.unlink()
    assert run(work, "score", "--text", "new.txt", "--tuned").exit_code == 2
    for name, content in (("absent.parquet", None), ("text.parquet", b"no parquet"), ("tokens.parquet", None)):
        if content:
            (work / name).write_bytes(content)
        done = run(work, "tune", name)
        assert done.exit_code == 2, done.output
        assert name in done.stderr


@pytest.mark.parametrize(
    "wrong",
    [
        ("--cache", "-1"),
        ("--cache-weight", "0.1"),
        ("--cache", "8", "--cache-weight", "0.7", "--lambda", "0.5"),
        ("--cache", "8", "--cache-temperature", "0"),
        ("--tuned", "--k", "5"),
        ("--adaptive", "--lambda", "0.5"),
    ],
)
def test_options_that_do_not_fit_each_other_are_refused(folder, wrong):
    assert run(folder, "score", "--text", "new.txt", *wrong).exit_code == 2
