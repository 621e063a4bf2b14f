"""A text read once: the same numbers as ``score``, another setting without another search."""

import contextlib
import json
import math

import numpy as np
import pytest
from click.testing import CliRunner

from knnstore.cli import main
from knnstore.errors import UsageError
from knnstore.explore import render
from knnstore.mixing.mixture import Mixture
from knnstore.mixing.setting import Setting

MIXTURE = Mixture(Setting(k=32, lambda_=0.3, temperature=20.0))


@pytest.fixture(scope="module")
def text(built):
    return sorted((built[0] / "books").iterdir())[0].read_text()


@pytest.fixture(scope="module")
def analysis(explorer, text):
    return explorer.analysed(text)


def test_the_perplexities_are_those_of_score(built, analysis, text):
    (name,) = [path.name for path in (built[0] / "books").iterdir() if path.read_text() == text]
    given = ("--k", "32", "--lambda", "0.3", "--temperature", "20", "--exact", "--json", "--quiet")
    with contextlib.chdir(built[0]):
        done = CliRunner().invoke(main, ["score", "--store", "books", "--text", f"books/{name}", *given])
    result, scored = json.loads(done.stdout), analysis.scored(MIXTURE)
    assert scored.lm_perplexity == pytest.approx(result["base"]["perplexity"], rel=1e-5)
    assert scored.perplexity == pytest.approx(result["knn"]["perplexity"], rel=1e-4)


def test_the_pieces_are_the_text_whatever_its_characters(explorer, analysis, text):
    assert "".join(analysis.pieces) == text
    odd = "naïve 🙂 café\n\n\t日本 e\u0301nd "
    assert "".join(explorer.analysed(odd).pieces) == odd


def test_another_setting_costs_no_search(explorer, text, monkeypatch):
    analysis = explorer.analysed(text)
    monkeypatch.setattr(explorer, "search", None)  # a search would raise
    perplexities = {explorer.analysed(text).scored(Mixture(Setting(k, 0.5, 20.0))).perplexity for k in (1, 8, 64)}
    assert len(perplexities) == 3
    assert analysis.scored(Mixture(Setting(8, 0.0, 20.0))).perplexity == analysis.scored(MIXTURE).lm_perplexity


def test_a_tokens_choices_are_the_mixture_of_lm_and_store(analysis):
    weights = analysis.votes(100, MIXTURE)
    assert weights.sum() == pytest.approx(1)
    assert (np.diff(weights) <= 0).all()
    choices = analysis.choices(100, MIXTURE, 8)
    assert len(choices) == 8
    assert int(analysis.ids[100]) in {choice.token for choice in choices}
    for choice in choices:
        assert choice.mixture == pytest.approx(0.3 * choice.store + 0.7 * choice.lm)
    (mine,) = [choice for choice in choices if choice.token == int(analysis.ids[100])]
    scored = analysis.scored(MIXTURE)
    assert (math.log(mine.lm), math.log(mine.mixture)) == pytest.approx(
        (scored.log_lm[100], scored.log_p[100]), rel=1e-4
    )


def test_sources_say_where_a_neighbour_stands(explorer, analysis):
    sources = explorer.sources(analysis, 100, MIXTURE, 5)
    assert [source.weight for source in sources] == pytest.approx(analysis.votes(100, MIXTURE)[:5].tolist())
    assert all(str(source.passage.document).startswith("books/") for source in sources)


def test_it_begins_with_a_tuned_setting_and_an_example_that_the_store_never_saw(explorer):
    start = explorer.start
    assert 0 < start.setting.lambda_ < 1
    assert "held-out" in start.source
    (segment,) = explorer.store.datastore.segments
    stored = explorer.store.lm.loaded.decode(segment.values(0, segment.rows).tolist())
    assert len(explorer.example.split()) > 20
    assert explorer.example not in stored


def test_nothing_to_read_is_said(explorer):
    with pytest.raises(UsageError, match="paste some text"):
        explorer.analysed(" \n")


def test_no_text_reaches_the_page_as_html(explorer):
    hostile = "<script>alert(1)</script> ${1+1} {{x}} <img src=x onerror=alert(2)>"
    analysis = explorer.analysed(hostile)
    shown = render.tokens(analysis, analysis.scored(MIXTURE), 0)
    shown += render.token_detail(
        analysis, analysis.scored(MIXTURE), 3, "λ 0.3", [("<b>", analysis.choices(3, MIXTURE, 1)[0])]
    )
    assert "<script" not in shown
    assert "<img" not in shown
    assert "<b>" not in shown
