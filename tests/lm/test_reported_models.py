"""Models from public reports, made by a script beside the checkout: each is refused in one sentence, or taken."""

import runpy

import pytest
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from knnstore.datastore.manifest import MANIFEST_FILE
from knnstore.errors import ModelError
from knnstore.ingestion.job import ingest
from knnstore.ingestion.plan import IngestOptions
from knnstore.lm.loading import identify
from knnstore.lm.spec import SHIPPED_MODELS
from knnstore.scheduling import Job


@pytest.fixture(scope="module")
def reported(shared, tmp_path_factory):
    """A folder of the models that the script makes, and ``a.txt`` with a token of ``added``. Read only."""
    folder = tmp_path_factory.mktemp("reported")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        runpy.run_path(str(shared / "reports" / "models.py"))
    (folder / "text").mkdir()
    (folder / "text" / "a.txt").write_text("A <|user|> said hello.\n")
    return folder


@pytest.mark.parametrize(
    ("model", "told"),
    [
        ("bert", r"bert \(BertLMHeadModel\) isn't causal"),
        ("headless", r"headless .* lacks lm_head\.weight"),
        ("added", r"a\.txt: the text has '<\|user\|>', token 8192 .*resize_token_embeddings"),
    ],
)
def test_a_reported_model_is_refused_in_one_sentence_before_any_key(reported, tmp_path, model, told):
    options = IngestOptions(
        corpus=(str(reported / "text"),), store=str(tmp_path / "s"), model=str(reported / model), special_tokens=True
    )
    with pytest.raises(ModelError, match=told) as caught:
        ingest(options, Job())
    assert "\n" not in str(caught.value)
    assert not [*tmp_path.rglob("keys")]
    if model != "added":
        assert not [*tmp_path.rglob(MANIFEST_FILE)]


def test_the_fingerprint_of_a_model_is_no_matter_of_the_librarys_version(shared, monkeypatch, capsys):
    script = str(shared / "reports" / "version_fingerprint.py")
    runpy.run_path(script)
    expected = capsys.readouterr().out.split()
    monkeypatch.setattr(transformers.GPT2Config, "to_dict", lambda _: {"of": "another version"})
    runpy.run_path(script)
    assert capsys.readouterr().out.split() == expected
    folder = SHIPPED_MODELS / "wiki-lm"
    loaded = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert identify("wiki-lm", folder, *loaded).config.startswith(expected[expected.index("config") + 1])
