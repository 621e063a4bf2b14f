"""The three commands as the README has them, typed in a folder that holds ``books/``: real LM, real text."""

import contextlib
import json
import math
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from knnstore.cli import main
from knnstore.datastore.store import Datastore
from knnstore.lm.loading import load_model
from knnstore.lm.spec import LmSpec

pytestmark = pytest.mark.slow

FIXED = ("--k", "32", "--lambda", "0.3", "--temperature", "20")


@pytest.fixture(scope="module")
def folder(built):
    return built[0]


@pytest.fixture(scope="module")
def score(folder):
    """``score`` with these arguments in this process, where the LM stays loaded."""

    def scored(*arguments):
        with contextlib.chdir(folder):
            done = CliRunner().invoke(main, ["score", "--store", "books", "--json", "--quiet", *arguments])
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    return scored


@pytest.fixture(scope="module")
def default(score):
    return score()


@pytest.fixture(scope="module")
def exact(score):
    return score("--exact", *FIXED)


def test_the_three_commands_work_as_typed(built):
    folder, (ingest, index, score) = built
    assert [done.returncode for done in (ingest, index, score)] == [0, 0, 0], [d.stderr for d in (ingest, index, score)]
    assert "wiki-lm (shipped with knnstore)" in ingest.stderr
    assert ingest.stdout.startswith("store     books.knnstore: ")
    assert "116 lists instead of 4,096" in index.stderr  # which these keys are too few to train
    assert "LM + books" in score.stdout
    assert "tuned on" in score.stdout
    assert (folder / "books").is_dir()
    assert (folder / "books.knnstore" / "knnstore.json").is_file()


def test_every_token_is_stored_once_or_held_out_and_none_is_lost(folder):
    (segment,) = Datastore(folder / "books.knnstore").segments
    model, table = load_model(LmSpec("wiki-lm")), segment.documents
    assert len(table.heldout()) == 2
    for number in range(len(table)):
        begin, end = int(table.first_row[number]), int(table.first_row[number] + table.tokens[number])
        tokens = np.concatenate([segment.values(begin, end), segment.heldout(number)])
        assert model.decode(tokens.tolist()) == (folder / table[number].path).read_text()
    assert segment.keys(0, segment.rows).shape == (segment.rows, 256)


def test_json_has_the_keys_that_scripts_rely_on(default):
    expected = {"store", "model", "documents", "tokens", "base", "knn", "gain_percent", "tokens_per_second", "seconds"}
    assert expected <= default.keys()
    assert {"perplexity", "bits_per_byte"} <= default["base"].keys()
    knn = {"perplexity", "bits_per_byte", "k", "lambda", "temperature", "nprobe", "exact"}
    assert knn <= default["knn"].keys()
    assert {"lm", "search", "mix"} <= default["seconds"].keys()
    assert (default["store"], default["model"]) == ("books", "wiki-lm")


def test_the_numbers_agree_with_each_other(default):
    base, knn = default["base"], default["knn"]
    assert default["gain_percent"] == pytest.approx(100 * (1 - knn["perplexity"] / base["perplexity"]))
    bits = math.log(base["perplexity"]) / math.log(knn["perplexity"])
    assert base["bits_per_byte"] / knn["bits_per_byte"] == pytest.approx(bits)
    assert default["gain_percent"] > 10  # its own books teach a Wikipedia LM a good deal
    assert knn["exact"] is False


def test_what_is_tuned_on_is_not_reported_on(default, folder):
    table = Datastore(folder / "books.knnstore").segments[0].documents
    assert default["documents"] + default["tuned_on"]["documents"] == 2
    assert default["tokens"] + default["tuned_on"]["tokens"] == int(table.heldout_tokens.sum())


def test_a_fixed_setting_is_taken_as_given_and_scores_all_that_is_held_out(exact, folder):
    knn = exact["knn"]
    assert (knn["k"], knn["lambda"], knn["temperature"], knn["exact"], knn["nprobe"]) == (32, 0.3, 20, True, None)
    assert exact["tuned_on"] == {"documents": 0, "tokens": 0}
    table = Datastore(folder / "books.knnstore").segments[0].documents
    assert exact["tokens"] == int(table.heldout_tokens.sum())


def test_every_way_of_searching_is_near_the_exact_one_and_says_what_it_is(score, exact):
    all_lists = score("--nprobe", "4096", *FIXED)
    assert all_lists["knn"]["perplexity"] == pytest.approx(exact["knn"]["perplexity"], rel=1e-4)
    quantised = score("--quantised", *FIXED)
    assert quantised["knn"]["perplexity"] == pytest.approx(exact["knn"]["perplexity"], rel=0.05)
    assert quantised["knn"]["perplexity"] != exact["knn"]["perplexity"]
    assert [("exact: every key" in r["search"], "PQ codes" in r["search"]) for r in (exact, all_lists, quantised)] == [
        (True, False),
        (False, False),
        (False, True),
    ]
    assert [r["base"] for r in (all_lists, quantised)] == [exact["base"]] * 2


@pytest.mark.parametrize("given", [{"k": 16}, {"lambda": 0.2}, {"temperature": 30.0}, {"k": 16, "lambda": 0.2}])
def test_what_is_given_stays_and_the_rest_is_tuned(score, given):
    result = score(*(word for name, value in given.items() for word in (f"--{name}", str(value))))
    assert {name: result["knn"][name] for name in given} == given
    assert result["tuned_on"]["tokens"] > 0


def test_a_weight_of_nothing_is_the_lm_alone(score):
    result = score("--lambda", "0", "--k", "4", "--temperature", "1")
    assert result["knn"]["perplexity"] == pytest.approx(result["base"]["perplexity"], rel=1e-12)
    assert result["gain_percent"] == pytest.approx(0, abs=1e-9)


def test_text_that_was_stored_is_known_by_heart(score, folder):
    text = sorted((folder / "books").iterdir())[0]
    stored = score("--text", f"books/{text.name}", "--k", "8", "--lambda", "0.9", "--temperature", "1")
    assert stored["documents"] == 1
    assert stored["knn"]["perplexity"] < 5 < stored["base"]["perplexity"]


def test_per_token_rows_add_up_to_the_totals(score, exact, folder):
    result = score("--exact", *FIXED, "--per-token", "tokens.parquet")
    table = pq.read_table(folder / "tokens.parquet")
    expected = {"document", "position", "token", "log_p_lm", "log_p_store", "log_p"}
    assert expected | {"agreeing_neighbours", "first_distance"} <= set(table.column_names)
    column = {name: table.column(name).to_numpy(zero_copy_only=False) for name in table.column_names}
    assert table.num_rows == result["tokens"]
    assert math.exp(-column["log_p_lm"].mean()) == pytest.approx(result["base"]["perplexity"], rel=1e-12)
    assert math.exp(-column["log_p"].mean()) == pytest.approx(result["knn"]["perplexity"], rel=1e-12)
    assert result["knn"] == exact["knn"]
    mixed = np.logaddexp(column["log_p_store"] + math.log(0.3), column["log_p_lm"] + math.log(0.7))
    np.testing.assert_allclose(column["log_p"], mixed, rtol=1e-6)
    assert ((column["agreeing_neighbours"] > 0) == np.isfinite(column["log_p_store"])).all()
    assert ((column["agreeing_neighbours"] <= 32) & (column["first_distance"] >= 0)).all()
    for name in set(column["document"]):
        mine = column["document"] == name
        assert column["position"][mine].tolist() == list(range(mine.sum()))
        text = load_model(LmSpec("wiki-lm")).decode(column["token_id"][mine].tolist())
        assert text == (folder / name).read_text()


def test_every_result_is_the_same_the_second_time(score, exact, default):
    again = score("--exact", *FIXED)
    assert (again["base"], again["knn"]) == (exact["base"], exact["knn"])
    again = score()
    assert (again["base"], again["knn"]) == (default["base"], default["knn"])


def test_the_same_commands_again_do_nothing_and_say_so(folder, knnstore, bytes_of, tmp_path):
    shutil.copytree(folder, tmp_path / "copy")
    before = bytes_of(tmp_path / "copy")
    ingest = knnstore(tmp_path / "copy", "ingest", "--corpus", "books/", "--json")
    assert ingest.returncode == 0, ingest.stderr
    assert json.loads(ingest.stdout)["tasks_run"] == 0
    index = knnstore(tmp_path / "copy", "index", "--nlist", "4096")
    assert "already finished" in index.stderr
    assert bytes_of(tmp_path / "copy") == before
