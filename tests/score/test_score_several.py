"""``score --store a --store b``: stores of one LM, searched together."""

import json
import os

import pytest
from click.testing import CliRunner

from knnstore.cli import main

FIXED = ("--k", "64", "--lambda", "0.4", "--temperature", "10")


@pytest.fixture
def knnstore(two_stores, monkeypatch):
    """The command, typed in the folder of both stores."""
    monkeypatch.chdir(two_stores)
    return lambda *arguments: CliRunner().invoke(main, [os.fspath(argument) for argument in arguments])


@pytest.fixture
def score(knnstore):
    def run(*arguments):
        ended = knnstore("score", "--text", "text", "--json", "--quiet", *arguments)
        assert ended.exit_code == 0, ended.stderr
        return json.loads(ended.stdout)

    return run


def test_two_stores_searched_together_are_a_store_of_both_corpora(score, knnstore, tmp_path):
    merged = knnstore("merge", "a.knnstore", "b.knnstore", "--into", tmp_path / "both")
    assert merged.exit_code == 0, merged.stderr
    both = score("--store", tmp_path / "both", "--exact", *FIXED)
    together = score("--store", "a", "--store", "b", "--exact", *FIXED)
    assert (together["keys"], together["store"]) == (both["keys"], "a + b")
    perplexity = {name: result["knn"]["perplexity"] for name, result in (("both", both), ("together", together))}
    assert perplexity["together"] == pytest.approx(perplexity["both"], rel=2e-3)  # their int8 scales differ
    assert score("--store", "b", "--exact", *FIXED)["knn"]["perplexity"] > 1.05 * perplexity["together"]


def test_each_store_is_searched_by_its_own_index_and_cited_by_its_own_documents(score, knnstore):
    result = score("--store", "b", "--store", "a")
    assert result["search"].startswith("b: exact distances in") and "; a: exact distances in" in result["search"]
    ended = knnstore("score", "--store", "b", "--store", "a", "--text", "text", *FIXED)
    cited = [line.split()[1] for line in ended.stdout.splitlines() if line.startswith("source")]
    assert cited and all("/a/" in source for source in cited)  # which holds the very text


def test_the_same_store_twice_is_refused(knnstore):
    ended = knnstore("score", "--store", "a", "--store", "a.knnstore", "--text", "text")
    assert ended.exit_code == 2 and "given twice" in ended.stderr


@pytest.mark.parametrize("option", [("--tuned",), ("--only", "10%"), ("--save-neighbours", "x.parquet")])
def test_what_belongs_to_a_single_store_is_refused_for_several(knnstore, option):
    ended = knnstore("score", "--store", "a", "--store", "b", "--text", "text", *option)
    assert ended.exit_code == 2 and f"{option[0]} requires a single store" in ended.stderr
