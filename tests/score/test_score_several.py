"""``score --store a --store b``: stores of one LM, searched together."""

import json
import shutil

import pytest

FIXED = ("--k", "64", "--lambda", "0.4", "--temperature", "10")


@pytest.fixture(scope="module")
def two(built, knnstore, tmp_path_factory):
    """A folder with ``books``, whose index is there, the store of its first half, and that of its second."""
    folder = tmp_path_factory.mktemp("several")
    for name in ("books", "books.knnstore"):
        shutil.copytree(built[0] / name, folder / name)
    files = sorted((folder / "books").iterdir())
    for name, part in (("first", files[:4]), ("second", files[4:])):
        (folder / name).mkdir()
        for file in part:
            shutil.copy(file, folder / name)
        assert knnstore(folder, "ingest", "--corpus", name, "--holdout", "0", "--quiet").returncode == 0
        assert knnstore(folder, "index", "--store", name, "--quiet").returncode == 0
    return folder


@pytest.fixture(scope="module")
def score(two, knnstore):
    def run(*arguments):
        ended = knnstore(two, "score", "--text", "text.txt", "--json", "--quiet", *arguments)
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)

    words = (two / "books").joinpath(sorted(path.name for path in (two / "books").iterdir())[0]).read_text()
    (two / "text.txt").write_text(words[300:1500])
    return run


def test_two_stores_searched_together_are_the_store_of_both_corpora(two, score, knnstore):
    assert knnstore(two, "ingest", "--corpus", "books", "--store", "both", "--holdout", "0", "--quiet").returncode == 0
    both = score("--store", "both", "--exact", *FIXED)
    together = score("--store", "first", "--store", "second", "--exact", *FIXED)
    assert (together["keys"], together["store"]) == (both["keys"], "first + second")
    alone = score("--store", "second", "--exact", *FIXED)
    perplexity = {name: result["knn"]["perplexity"] for name, result in (("both", both), ("together", together))}
    assert perplexity["together"] == pytest.approx(perplexity["both"], rel=2e-3)  # their int8 scales differ
    assert alone["knn"]["perplexity"] > 1.05 * perplexity["together"]


def test_each_store_is_searched_by_its_own_index_and_cited_by_its_own_documents(two, score, knnstore):
    result = score("--store", "second", "--store", "first")
    assert (
        result["search"].startswith("second: exact distances in") and "; first: exact distances in" in result["search"]
    )
    ended = knnstore(two, "score", "--store", "second", "--store", "first", "--text", "text.txt", *FIXED)
    cited = [line.split()[2] for line in ended.stdout.splitlines() if line.startswith("taught by")]
    assert cited and all(source.startswith("first/") for source in cited)  # which holds the very text


def test_the_same_store_twice_is_refused(two, knnstore):
    ended = knnstore(two, "score", "--store", "books", "--store", "books.knnstore", "--text", "text.txt")
    assert ended.returncode == 2 and "given twice" in ended.stderr


@pytest.mark.parametrize("option", [("--tuned",), ("--only", "10%"), ("--save-neighbours", "x.parquet")])
def test_what_belongs_to_a_single_store_is_refused_for_several(two, knnstore, option):
    ended = knnstore(two, "score", "--store", "first", "--store", "second", "--text", "text.txt", *option)
    assert ended.returncode == 2 and f"{option[0]} goes with a single store" in ended.stderr
