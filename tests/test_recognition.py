"""A store and its LM find each other again under every version of the libraries; another LM is still refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

import knnstore
from knnstore.datastore.manifest import load_manifest
from knnstore.datastore.store import Datastore
from knnstore.errors import MismatchError, MismatchWarning
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.ingestion.job import ingest
from knnstore.ingestion.plan import IngestOptions
from knnstore.living.compact import CompactOptions, compact
from knnstore.living.deriving import merge
from knnstore.lm.forward import key_model
from knnstore.lm.identity import identify
from knnstore.lm.loading import load_model
from knnstore.lm.spec import SHIPPED_MODELS, LmSpec
from knnstore.progress import Reporter
from knnstore.scheduling import Job, SerialRunner
from knnstore.scoring.job import score
from knnstore.scoring.options import ScoreOptions

WIKI = SHIPPED_MODELS / "wiki-lm"
OTHER_CONFIG, OTHER_TOKENIZER = "c" * 64, "d" * 64


@pytest.fixture(autouse=True)
def fresh():
    """No LM is kept from one test to the next."""
    yield
    key_model.cache_clear()
    load_model.cache_clear()


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    """A small random LM with clear keys. Read only."""
    folder = tmp_path_factory.mktemp("models") / "lm"
    torch.manual_seed(0)
    sizes = {"vocab_size": 8192, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(**sizes, intermediate_size=64, max_position_embeddings=128, bos_token_id=0, eos_token_id=0)
    model = LlamaForCausalLM(config)
    for weight in model.parameters():
        weight.data.mul_(4 if weight.dim() > 1 else 1)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(WIKI).save_pretrained(folder)
    return folder


@pytest.fixture
def made_before(monkeypatch):
    """``made_before(tokenizer=…)``: until ``monkeypatch.undo()``, digests are those of another version of libraries."""

    def patch(tokenizer=OTHER_TOKENIZER):
        def former(*arguments):
            return replace(identify(*arguments), config=OTHER_CONFIG, tokenizer=tokenizer)

        key_model.cache_clear()
        load_model.cache_clear()
        monkeypatch.setattr("knnstore.lm.loading.identify", former)

    return patch


class Heard(Reporter):
    """Keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.lines = []

    def say(self, line):
        self.lines.append(line)


def make(folder, corpus, model, **options):
    heard = Heard()
    store = folder / "s.knnstore"
    wanted = {"holdout": 0.2, "context": 64, "chunk_rows": 1024, "dtype": "float32"} | options
    job = Job(wanted.pop("runner", SerialRunner()), heard)
    ingest(IngestOptions(corpus=(str(corpus),), store=str(store), model=str(model), **wanted), job)
    return store, heard.lines


@pytest.fixture
def corpus(tiny_corpus, tmp_path):
    folder = tmp_path / "books"
    folder.mkdir()
    for file in sorted(tiny_corpus.iterdir())[:4]:
        (folder / file.name).write_text(file.read_text()[:1200])
    return folder


@pytest.fixture
def old(made_before, monkeypatch, tmp_path, corpus, lm):
    """A store whose digests of configuration and tokenizer another version of the libraries made."""
    made_before()
    store, _ = make(tmp_path, corpus, lm)
    monkeypatch.undo()
    key_model.cache_clear()
    load_model.cache_clear()
    assert load_manifest(store).model.config == OTHER_CONFIG
    return store


def perplexities(store, model, **options):
    heard = Heard()
    report = score(ScoreOptions(model=str(model), exact=True, **options), Datastore(store), Job(reporter=heard))
    return report, [line for line in heard.lines if "digests by other library versions" in line]


# Digests


def test_a_digest_comes_of_the_files_and_not_of_what_the_library_makes_of_them(lm, monkeypatch):
    expected = load_model(LmSpec(str(lm))).identity
    load_model.cache_clear()
    monkeypatch.setattr(LlamaConfig, "to_dict", lambda _: {"anything": "else"})
    assert load_model(LmSpec(str(lm))).identity == expected


@pytest.mark.parametrize(
    ("settings", "same"),
    [
        ({"transformers_version": "4.56.0", "torch_dtype": "bfloat16", "use_cache": False}, True),
        ({"do_sample": True, "repetition_penalty": 1.2, "architectures": None}, True),
        ({"rms_norm_eps": 1e-4}, False),
        ({"hidden_act": "gelu"}, False),
        ({"rope_theta": 5e5}, False),
        ({"sliding_window": None}, False),
        ({"a_setting_that_nobody_knows": 1}, False),
    ],
    ids=str,
)
def test_settings_that_change_numbers_count_and_those_of_generation_do_not(lm, tmp_path, settings, same):
    expected = load_model(LmSpec(str(lm))).identity
    folder = shutil.copytree(lm, tmp_path / "lm")
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(config))
    found = load_model(LmSpec(str(folder))).identity
    assert (found.config == expected.config) == same
    assert (found.weights, found.tokenizer) == (expected.weights, expected.tokenizer)


# Stores that were made before


def test_an_older_store_is_scored_by_its_lm_and_that_is_said_once(old, lm):
    report, said = perplexities(old, lm)
    assert len(said) == 1
    assert "squared error of the keys" in said[0]
    assert report.tokens > 0


def test_an_older_store_is_opened_by_programs_with_a_warning(old, lm):
    with (
        knnstore.open(old, str(lm), dtype="float32") as store,
        pytest.warns(MismatchWarning, match="it is the same LM"),
    ):
        assert store.neighbours("The class statement", 2, exact=True)


def test_an_older_store_grows_is_indexed_and_compacted(old, corpus, lm, tmp_path):
    (corpus / "new.txt").write_text("A river runs past the mill. " * 30)
    _, lines = make(tmp_path, corpus, lm)
    assert len([line for line in lines if "digests of it by other versions" in line]) == 1
    store = Datastore(old)
    assert len(store.segments) == 2
    assert {segment.plan.model.config for segment in store.segments} == {OTHER_CONFIG}
    build_index(store, IndexOptions(pq_bytes=8), Job())
    compact(old, CompactOptions(), Job())
    assert len(Datastore(old).segments) == 1
    assert len(perplexities(old, lm)[1]) == 1


def test_lost_keys_of_an_older_store_are_made_again(old, corpus, lm, tmp_path, bytes_of):
    expected = bytes_of(old)
    segment = Datastore(old).segments[0]
    for file in [*segment.root.glob("keys/c/0/0"), *segment.root.glob("commits/keys-000000.json")]:
        file.unlink()
    make(tmp_path, corpus, lm)
    assert bytes_of(old) == expected


@pytest.fixture
def made_here(tmp_path, corpus, lm):
    """The store of an ingest that nothing interrupted."""
    return make(tmp_path / "whole", corpus, lm, chunk_rows=256)[0]


@pytest.fixture
def begin_elsewhere(made_before, monkeypatch, corpus, lm, counting_runner):
    """``begin_elsewhere(folder, most)``: an ingest under other versions of the libraries that ended after ``most``
    tasks.
    """

    def begin(folder, most):
        made_before()
        monkeypatch.setattr("knnstore.ingestion.plan.version", lambda name: "0.0.1")
        with pytest.raises(InterruptedError):
            make(folder, corpus, lm, runner=counting_runner(most=most), chunk_rows=256)
        monkeypatch.undo()
        key_model.cache_clear()
        load_model.cache_clear()
        return make(folder, corpus, lm, chunk_rows=256)

    return begin


@pytest.mark.parametrize("most", [4, 5, 6])
def test_an_ingest_that_another_version_began_goes_on(begin_elsewhere, made_here, tmp_path, bytes_of, most):
    expected = bytes_of(made_here)
    store, lines = begin_elsewhere(tmp_path, most)
    assert any(line.startswith("versions  it was started with knnstore 0.0.1") for line in lines)
    found = {name: data for name, data in bytes_of(store).items() if "/c/" in name}
    assert found == {name: data for name, data in expected.items() if "/c/" in name}


def test_an_older_store_and_a_new_one_are_merged(old, corpus, lm, tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "new.txt").write_text("A river runs past the mill. " * 30)
    new, _ = make(tmp_path / "new", tmp_path / "more", lm, holdout=0)
    merged = tmp_path / "both.knnstore"
    merge([Datastore(old), Datastore(new)], merged, Job())
    report, said = perplexities(merged, lm, text=(str(tmp_path / "more"),))
    assert report.tokens > 0
    assert len(said) == 1


# Other LMs


def other_settings(lm, folder, **settings):
    shutil.copytree(lm, folder)
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_same_weights_in_another_computation_are_refused_by_the_keys(old, corpus, lm, tmp_path):
    other = other_settings(lm, tmp_path / "other", hidden_act="relu")
    with pytest.raises(MismatchError, match=r"config differ; the squared error of the keys of its first"):
        perplexities(old, other)
    with pytest.raises(MismatchError, match=r"model\.config"):
        make(tmp_path, corpus, other)


def test_a_config_that_was_saved_anew_is_the_same_lm_by_its_keys(corpus, lm, tmp_path):
    store, _ = make(tmp_path, corpus, lm)
    again = other_settings(lm, tmp_path / "again", a_default_that_a_newer_version_writes=0)
    assert len(perplexities(store, again)[1]) == 1


def test_a_tokenizer_that_makes_other_tokens_of_an_older_stores_text_is_refused(old, lm, tmp_path):
    folder = shutil.copytree(lm, tmp_path / "other")
    rules = json.loads((folder / "tokenizer.json").read_text())
    rules["model"]["merges"] = rules["model"]["merges"][:2000]
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    with pytest.raises(MismatchError, match="tokenizer differ"):
        perplexities(old, folder)


def spoil(spec):
    """Change what the loaded LM computes, as another version of a library might."""
    key_model(spec).loaded.model.model.layers[0].self_attn.o_proj.weight.data.mul_(-3)


def test_the_same_files_that_make_other_keys_under_other_versions_are_refused(corpus, lm, tmp_path, monkeypatch):
    monkeypatch.setattr("knnstore.ingestion.plan.version", lambda name: "0.0.1")
    store, _ = make(tmp_path, corpus, lm)
    monkeypatch.undo()
    assert perplexities(store, lm)[0].tokens > 0
    spoil(LmSpec(str(lm), dtype="float32"))
    with pytest.raises(MismatchError, match="computation differ"):
        perplexities(store, lm, dtype="float32")
    spoil(LmSpec(str(lm.resolve()), dtype="float32"))
    with pytest.raises(MismatchError, match="made with other versions of the libraries"):
        make(tmp_path, corpus, lm)
