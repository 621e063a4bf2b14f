"""Text that the store holds already: ``score`` reports it for each document, and leaves its sources out on request."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from knnstore.cli import main
from knnstore.cli.report.score import score_text
from knnstore.datastore.store import Datastore
from knnstore.datastore.stores import Stores
from knnstore.errors import UsageError
from knnstore.living.remove import remove
from knnstore.lm.forward import key_model
from knnstore.lm.spec import LmSpec, resolve_model
from knnstore.scheduling import Job, SerialRunner
from knnstore.scoring import overlap
from knnstore.scoring.job import score
from knnstore.scoring.options import ScoreOptions
from knnstore.scoring.overlap import measure_overlap
from knnstore.scoring.texts import gather_texts
from knnstore.suffix_array import overlaps
from knnstore.suffix_array.build import build_suffixes

FIXED = {"k": 64, "lambda_": 0.4, "temperature": 10.0}


class Workers(SerialRunner):
    """Searches by shards, as a cluster of two does."""

    workers = 2
    foreign = True


@pytest.fixture
def stores(two_stores, monkeypatch):
    monkeypatch.chdir(two_stores)
    return [Datastore(two_stores / f"{name}.knnstore") for name in "ab"]


@pytest.fixture
def copied(stores):
    """The files of the store ``a`` that the text was cut out of."""
    return [str(path) for path in sorted(stores[0].root.with_name("a").iterdir())[:2]]


def run(stores, *, runner=None, **options):
    settings = ScoreOptions(**({"text": ("text",)} | FIXED | options))
    return score(settings, stores[0], Job(runner or SerialRunner()), beside=stores[1:])


def texts_of(stores, *paths):
    loaded = key_model(LmSpec(str(resolve_model("wiki-lm")), "ffn-input", "auto", "auto")).loaded
    return gather_texts(ScoreOptions(text=tuple(map(str, paths))), Stores(stores), loaded)[1]


def by_definition(texts, store):
    """Of each text the tokens in runs of 50 or more that a shown document of the store has, found by their bytes."""
    held = set()
    for segment, hidden in zip(store.segments, store.hidden, strict=True):
        table = segment.documents
        for first, tokens in zip(table.first_row.tolist(), table.tokens.tolist(), strict=True):
            if tokens and not hidden.contains(np.array(first)):
                ids = segment.values(first, first + tokens).astype(np.uint32)
                held |= {bytes(ids[start : start + 50]) for start in range(tokens - 49)}
    counts = []
    for document, tokens in enumerate(texts.tokens.tolist()):
        ids, inside = texts.read(document, 0, tokens), np.zeros(tokens, bool)
        for start in range(tokens - 49):
            inside[start : start + 50] |= bytes(ids[start : start + 50]) in held
        counts.append(int(inside.sum()))
    return counts


def test_each_document_is_reported_with_the_share_that_the_store_repeats_and_its_source(stores, copied):
    report = run(stores[:1], exact=True)
    told = {one.document: one for one in report.overlap.documents}
    texts = texts_of(stores[:1], "text")
    assert [told[name].shared for name in texts.names] == by_definition(texts, stores[0])
    assert all(0.8 < one.share <= 1 and not one.identical for one in told.values())
    assert [told[name].source for name in texts.names] == copied
    assert report.overlap.source_documents == 2
    lines = score_text(report).splitlines()
    assert any(line.startswith("overlap") and "of the tokens are in runs of 50 or more" in line for line in lines)
    assert sum(one in line for line in lines for one in told) >= 2 and "exclude_overlap=True" in " ".join(lines)


def test_a_document_that_is_stored_is_recognised_by_its_digest_twice_too(stores, copied, tmp_path):
    again = shutil.copy(copied[0], tmp_path / "again.txt")
    overlap, _ = measure_overlap(texts_of(stores, copied[0], again), Stores(stores), exclude=False)
    assert [(one.document, one.source, one.identical, one.share) for one in overlap.documents] == [
        (copied[0], copied[0], True, 1.0),
        (str(again), copied[0], True, 1.0),
    ]


def test_new_text_shares_nothing_and_nothing_is_warned_of(stores, tmp_path):
    (tmp_path / "new.txt").write_text("Entirely new words that no such manual would ever hold. " * 20)
    report = run(stores, text=(str(tmp_path / "new.txt"),))
    assert (report.overlap.shared, report.overlap.documents, report.overlap.inflates) == (0, (), False)
    assert "0.0 % of the tokens" in score_text(report) and "--exclude-overlap" not in score_text(report)


@pytest.mark.parametrize(
    "how",
    [{"exact": True}, {"quantised": True}, {}, {"runner": Workers()}],
    ids=["exact", "quantised", "lists", "on workers"],
)
def test_excluding_overlap_is_leaving_its_sources_out_of_every_kind_of_search(stores, copied, how):
    without = run(stores[:1], without=tuple(copied), **how)
    excluded = run(stores[:1], exclude_overlap=True, **how)
    assert (excluded.keys, excluded.knn.perplexity) == (without.keys, without.knn.perplexity)
    assert excluded.knn.perplexity > 2 * run(stores[:1], **how).knn.perplexity
    assert (excluded.overlap.excluded, excluded.overlap.source_documents) == (True, 2)
    assert excluded.overlap.share > 0.8 and without.overlap.share == 0
    assert excluded.overlap.source_keys == stores[0].live_rows - excluded.keys
    assert "leaves out 2 documents" in " ".join(score_text(excluded).split())


def test_it_is_left_out_of_each_of_several_stores_even_where_nothing_is_left_of_one(stores, copied, tmp_path):
    for number, path in enumerate([copied[0], *stores[1].root.with_name("b").iterdir()]):
        (tmp_path / f"{number}.txt").write_text(Path(path).read_text()[300:700])
    options = {"text": (str(tmp_path / "*.txt"),), "exclude_overlap": True}
    for how in ({"exact": True}, {"exact": False}):
        both, one = run(stores, **options, **how), run(stores[:1], **options, **how)
        assert both.keys == one.keys == stores[0].live_rows - len(texts_of(stores, copied[0]).ids)
        assert both.knn.perplexity == pytest.approx(one.knn.perplexity, rel=1e-6)


def test_what_is_saved_for_tuning_has_no_neighbour_out_of_an_excluded_document(stores, copied, tmp_path):
    without, excluded = tmp_path / "without.parquet", tmp_path / "excluded.parquet"
    run(stores[:1], without=tuple(copied), save_neighbours=str(without))
    run(stores[:1], exclude_overlap=True, save_neighbours=str(excluded))
    assert pq.read_table(excluded).equals(pq.read_table(without))


def test_excluding_all_that_is_stored_is_refused(stores):
    with pytest.raises(UsageError, match="leaves no key of b to search"):
        run(stores[1:], text=(str(stores[1].root.with_name("b")),), exclude_overlap=True)


def test_the_exact_match_memory_finds_what_a_pass_over_the_tokens_finds(stores, copied, tmp_path, monkeypatch):
    store = Datastore(shutil.copytree(stores[0].root, tmp_path / "a.knnstore"))
    texts = texts_of([store], "text", copied[0], *sorted(stores[1].root.with_name("b").iterdir())[:1])
    passed, removed = measure_overlap(texts, Stores([store]), exclude=False)
    build_suffixes(store, Job(memory=10**9))
    monkeypatch.setattr(overlap, "find_windows", None)
    for pairs in (2**15, 7):
        monkeypatch.setattr(overlaps, "_PAIRS", pairs)
        asked, same = measure_overlap(texts, Stores([store]), exclude=False)
        assert replace(asked, seconds=0) == replace(passed, seconds=0)
        assert [{name: numbers.tolist() for name, numbers in one.items()} for one in same] == [
            {name: numbers.tolist() for name, numbers in one.items()} for one in removed
        ]


def test_a_text_of_many_blocks_and_a_store_of_many_chunks_give_the_same(stores, copied, monkeypatch):
    texts = texts_of(stores, "text", *copied)
    whole, _ = measure_overlap(texts, Stores(stores), exclude=False)
    monkeypatch.setattr(overlap, "MOST_WINDOWS", 97)
    monkeypatch.setattr("knnstore.datastore.overlaps.VALUE_CHUNK_ROWS", 131)
    parts, _ = measure_overlap(texts, Stores(stores), exclude=False)
    assert (parts.shared, parts.source_documents) == (whole.shared, whole.source_documents)
    assert [(one.document, one.shared) for one in parts.documents] == [
        (one.document, one.shared) for one in whole.documents
    ]


def test_removed_and_masked_documents_are_no_sources(stores, copied, tmp_path):
    root = shutil.copytree(stores[0].root, tmp_path / "a.knnstore")
    remove(root, [copied[0]])
    store = Datastore(root)
    texts = texts_of([store], copied[0], copied[1])
    report, repeated = measure_overlap(texts, Stores([store]), exclude=False)
    assert [one.document for one in report.documents] == [copied[1]]
    report, _ = measure_overlap(texts, Stores([store.masked(repeated[0])]), exclude=False)
    assert (report.shared, report.documents) == (0, ())


def test_json_and_page_tell_the_same_as_the_text(stores, copied, tmp_path):
    target = tmp_path / "page.html"
    options = "--k 16 --lambda 0.3 --temperature 10 --json --quiet --exclude-overlap"
    ended = CliRunner().invoke(
        main, ["score", "--store", "a", "--text", copied[0], "--report", str(target), *options.split()]
    )
    assert ended.exit_code == 0, ended.output
    told = json.loads(ended.stdout)["overlap"]
    assert told["share"] == 1.0 and told["excluded"] and told["least_run"] == 50
    assert told["documents"] == [
        {
            "document": copied[0],
            "tokens": told["tokens"],
            "shared_tokens": told["tokens"],
            "share": 1.0,
            "source": copied[0],
            "identical": True,
        }
    ]
    assert json.loads(ended.stdout)["seconds"]["overlap"] > 0
    html = target.read_text()
    assert "Overlap with the store" in html and copied[0] in html
