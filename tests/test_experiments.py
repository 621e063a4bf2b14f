"""tools/experiment.py: every experiment runs on small stores and ends in a table."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

TOOLS = str(Path(__file__).parents[1] / "tools")


@pytest.fixture(scope="module", autouse=True)
def tools_on_the_path():
    sys.path.insert(0, TOOLS)
    yield
    sys.path.remove(TOOLS)


@pytest.fixture(scope="module")
def folder(two_stores, tmp_path_factory):
    """Two stores, neighbours in each of one text of two documents, and the text."""
    from knnstore.datastore.store import Datastore
    from knnstore.scoring.job import score
    from knnstore.scoring.options import ScoreOptions

    folder = tmp_path_factory.mktemp("experiments")
    for name in two_stores.iterdir():
        (folder / name.name).symlink_to(name)
    cache = {"cache": 64, "cache_weight": 0.1, "cache_temperature": 10.0}
    for name in ("a", "b"):
        asked = ScoreOptions(
            text=(str(folder / "text"),),
            model="wiki-lm",
            k=64,
            lambda_=0.3,
            temperature=10.0,
            save_neighbours=str(folder / f"{name}.parquet"),
            **cache,
        )
        score(asked, Datastore(two_stores / f"{name}.knnstore"))
    return folder


@pytest.fixture
def experiment(folder, capsys, monkeypatch):
    """Runs an experiment in the folder; what it printed, and its numbers."""
    from experiment import main

    def run(name, *arguments):
        monkeypatch.chdir(folder)
        assert main([name, "--out", "results", *arguments]) == 0
        return capsys.readouterr().out, json.loads((folder / "results" / f"{name}-in-domain.json").read_text())

    return run


@pytest.mark.parametrize("name", ["gains", "ablations", "growth", "skipping", "helps"])
def test_experiments_with_saved_neighbours_end_in_a_table(experiment, name):
    printed, numbers = experiment(name, "--neighbours", "a.parquet", "--store", "a")
    assert "a: " in printed and numbers


def test_skipping_says_how_many_tokens_go_by_in_a_second_where_it_is_given_the_text(experiment):
    printed, numbers = experiment("skipping", "--neighbours", "a.parquet", "--store", "a", "--text", "text")
    assert "tokens/s" in printed
    assert len(numbers["tokens a second"]) == len(numbers["curves"]["at random"])


def test_two_stores_gain_more_than_the_one_that_knows_less_merged_or_weighed(experiment):
    _, numbers = experiment("stores", "--neighbours", "a.parquet", "b.parquet", "--store", "a", "b")
    assert numbers["LM + a"] < numbers["LM + b"] < numbers["LM alone"]  # the text is a's
    assert max(numbers["merged: the nearest of both"], numbers["a weight for each"]) < numbers["LM + b"]


def test_more_lists_come_nearer_to_a_search_of_every_key(experiment):
    printed, numbers = experiment("searching", "--store", "a", "--text", "text", "--probes", "1", "4", "4096")
    gap = {name: numbers[name]["perplexity"] - numbers["every key"]["perplexity"] for name in ("1 lists", "4096 lists")}
    assert abs(gap["4096 lists"]) < 1e-3 < abs(gap["1 lists"])
    assert "codes alone" in printed


def test_successors_are_the_next_rows_of_neighbours_that_were_right_within_their_document(folder, monkeypatch):
    from experiments.pointers import Walk

    from knnstore.neighbours import ABSENT

    monkeypatch.chdir(folder)
    walk = Walk(type("", (), {"store": "a", "text": ["text"], "model": "wiki-lm", "tokens": 200, "k": 32}))
    segment = walk._store.segments[0]
    values = segment.values(0, segment.rows)
    end = int(segment.documents.first_row[1]) - 1  # the last row of the first document
    rows = np.array([3, 5, end, ABSENT])
    assert walk.successors(rows, int(values[3])).tolist() == [r + 1 for r in (3, 5) if values[r] == values[3]]
    assert walk.successors(rows, int(values[end])).tolist() == [r + 1 for r in (3, 5) if values[r] == values[end]]


def test_successors_replace_searches_and_cost_less_than_leaving_them_out(experiment):
    _, numbers = experiment("pointers", "--store", "a", "--text", "text", "--k", "32", "--tokens", "300")
    share, with_successors, left_out = numbers["fewest 1"]
    assert share < 0.2  # the text is in the store: one neighbour is always right
    assert with_successors < left_out < numbers["LM"]


def test_every_kind_of_key_is_measured_with_its_bytes(experiment):
    printed, numbers = experiment("choices", "--corpus", "a", "--text", "text", "--keys", "2000", "--tokens", "300")
    assert numbers["ffn-input: L2, float16"][0] == 512 and numbers["ffn-input: L2, PQ of d/4 bytes"][0] == 64
    assert all(numbers[name][1] < numbers["LM alone"] for name in numbers if "L2" in name)
    assert "attention-input: L2, float16" in printed


def test_an_lm_of_a_part_with_a_store_of_all_is_held_against_an_lm_of_all(experiment):
    sizes = ["--steps", "3", "--layers", "1", "--width", "32", "--part", "2", "--tokens", "200"]
    printed, numbers = experiment("training", "--corpus", "a", "b", "--text", "text", "--work", "trained", *sizes)
    assert numbers["joined"] < numbers["lm-of-a-part"]
    assert "13.73" in printed
