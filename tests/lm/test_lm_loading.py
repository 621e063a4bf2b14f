"""Which LM a name means, what is never loaded, and what makes two LMs the same."""

import json
import shutil

import numpy as np
import pytest
import torch

from knnstore.errors import ModelError
from knnstore.lm.forward import describe, key_model, padded_ids, window_keys
from knnstore.lm.loading import load_model
from knnstore.lm.scoring import window_scores
from knnstore.lm.spec import SHIPPED_MODELS, LmSpec, default_model, resolve_model
from knnstore.windows import cut_windows

WIKI = SHIPPED_MODELS / "wiki-lm"


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.delenv("KNNSTORE_MODEL", raising=False)
    monkeypatch.setenv("KNNSTORE_MODELS", str(tmp_path / "models"))
    return tmp_path


def make(folder, weights="model.safetensors"):
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / weights).write_bytes(b"")


# Which one a name means


def test_a_name_is_looked_up_in_the_users_models_then_here_then_in_what_is_shipped(here):
    assert resolve_model("wiki-lm") == WIKI
    make(here / "here" / "wiki-lm")
    assert resolve_model("wiki-lm").resolve() == here / "here" / "wiki-lm"
    make(here / "models" / "wiki-lm")
    assert resolve_model("wiki-lm") == here / "models" / "wiki-lm"


def test_a_path_means_the_folder_itself(here):
    make(here / "elsewhere" / "lm")
    make(here / "models" / "lm")
    assert resolve_model(str(here / "elsewhere" / "lm")) == here / "elsewhere" / "lm"


def test_the_default_is_what_the_environment_says_else_what_is_shipped(here, monkeypatch):
    assert default_model() == "wiki-lm"
    monkeypatch.setenv("KNNSTORE_MODEL", "mine")
    assert default_model() == "mine"


def test_a_missing_model_is_named_with_the_places_that_were_looked_at(here):
    with pytest.raises(ModelError) as caught:
        resolve_model("no such model")
    for place in (here / "models" / "no such model", SHIPPED_MODELS / "no such model"):
        assert str(place) in str(caught.value)


def test_a_folder_that_holds_no_model_is_named(here):
    (here / "here" / "empty").mkdir()
    with pytest.raises(ModelError, match=r"model empty: the folder has no config\.json"):
        resolve_model("empty")


# What is never loaded


def test_pickled_weights_are_refused_with_the_way_to_convert_them(here):
    make(here / "pickled", weights="pytorch_model.bin")
    with pytest.raises(
        ModelError, match=r"no \.safetensors weights \(pytorch_model\.bin\).*doesn't load pickles.*save_p"
    ):
        resolve_model(str(here / "pickled"))


def copy(to, **config):
    shutil.copytree(WIKI, to)
    if config:
        (to / "config.json").write_text(json.dumps(json.loads((to / "config.json").read_text()) | config))
    return to


@pytest.mark.parametrize("damage", ["cut", "text", "unknown architecture"])
def test_a_model_that_cannot_be_loaded_is_one_sentence(tmp_path, damage):
    folder = copy(tmp_path / "lm", **({"model_type": "nonesuch"} if damage == "unknown architecture" else {}))
    if damage == "cut":
        weights = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    elif damage == "text":
        (folder / "model.safetensors").write_text("not weights")
    with pytest.raises(ModelError, match=r"^model .*lm \(.*lm\) can't be loaded: [^\n]+$"):
        load_model(LmSpec(str(folder)))


@pytest.mark.parametrize(("spec", "told"), [({"dtype": "int4"}, "dtype='int4'"), ({"device": "tpu9"}, "device='tpu9'")])
def test_a_dtype_or_device_that_does_not_exist_is_named(spec, told):
    with pytest.raises(ModelError, match=told):
        load_model(LmSpec(str(WIKI), **spec))


# What makes two LMs the same


def identity(folder):
    return load_model(LmSpec(str(folder))).identity


def test_the_folders_name_and_what_a_config_says_of_its_file_make_no_difference(tmp_path):
    one, other = identity(WIKI), identity(copy(tmp_path / "other", transformers_version="1.2.3", use_cache=False))
    assert other.name == "other"
    assert (one.weights, one.config, one.tokenizer) == (other.weights, other.config, other.tokenizer)


def test_one_weight_makes_another_lm(tmp_path):
    folder = copy(tmp_path / "lm")
    weights = bytearray((folder / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (folder / "model.safetensors").write_bytes(weights)
    one, other = identity(WIKI), identity(folder)
    assert one.weights != other.weights
    assert (one.config, one.tokenizer) == (other.config, other.tokenizer)


def test_another_setting_of_the_architecture_makes_another_lm(tmp_path):
    other = identity(copy(tmp_path / "lm", layer_norm_epsilon=1e-6))
    assert identity(WIKI).config != other.config
    assert identity(WIKI).weights == other.weights


def test_another_tokenizer_makes_another_lm(tmp_path):
    folder = copy(tmp_path / "lm")
    rules = json.loads((folder / "tokenizer.json").read_text())
    rules["model"]["merges"] = rules["model"]["merges"][:-1]
    (folder / "tokenizer.json").write_text(json.dumps(rules))
    one, other = identity(WIKI), identity(folder)
    assert one.tokenizer != other.tokenizer
    assert one.weights == other.weights


# What it computes


def test_the_shipped_lm_is_described(here):
    facts = describe(LmSpec("wiki-lm", dtype="float32"))
    assert (facts.dimension, facts.default_context, facts.longest_context) == (256, 256, 256)
    assert (facts.layer, facts.path, facts.dtype) == ("ffn-input", "transformer.h.5.mlp", "float32")
    assert facts.identity.vocabulary == 8192


@pytest.fixture(scope="module")
def wiki():
    return key_model(LmSpec(str(WIKI), dtype="float32", device="cpu"))


def test_no_feed_forward_block_and_no_head_run_for_the_last_key(wiki):
    ran = []
    for module in (wiki.loaded.model.transformer.h[-1].mlp, wiki.loaded.model.lm_head):
        module.register_forward_hook(lambda module, *_: ran.append(module))
    wiki.keys(np.arange(10)[None])
    assert ran == []
    wiki.keys_and_logits(np.arange(10)[None], 0)
    assert len(ran) == 2


def test_tokens_decode_to_the_text_that_they_were_made_of(wiki):
    text = "Zoë's  café – 東京 ,\n\n\ttabs and ' spaces ' ."
    assert wiki.loaded.decode(wiki.loaded.tokenise(text)) == text
    assert wiki.loaded.tokenise("").shape == (0,)


DOCUMENTS = [np.random.default_rng(0).integers(1, 8192, length) for length in (1, 130, 7, 64)]
FIRST = np.cumsum([0, *map(len, DOCUMENTS)])[:-1]
COUNTS = np.array([len(document) for document in DOCUMENTS])


def read(document, begin, end):
    return DOCUMENTS[document][begin:end]


def test_a_batch_is_bos_and_the_documents_tokens_padded_on_the_right():
    windows = cut_windows(np.array([0, 1]), np.array([1, 5]), context=4, stride=2)
    texts = [[5], [10, 11, 12, 13, 14]]
    ids = padded_ids(windows, lambda document, begin, end: texts[document][begin:end], 99)
    assert ids.tolist() == [[99, 99, 99, 99], [99, 10, 99, 99], [99, 10, 11, 12], [11, 12, 13, 99]]


def naive_keys_and_log_p(wiki, context, stride):
    """Each row's key and ln p from a forward pass of its own."""
    keys, log_p = [], []
    for document in DOCUMENTS:
        stream = np.concatenate([[wiki.loaded.bos], document])
        for i in range(0, len(document), stride):
            begin, end = max(i + stride - context, 0), min(i + stride, len(document))
            states, logits = wiki.keys_and_logits(stream[None, begin:end], 0)
            keys.append(states[0, i - begin :])
            chosen = logits[0, i - begin :].double().log_softmax(-1)
            log_p.append(chosen[torch.arange(end - i), torch.from_numpy(stream[i + 1 : end + 1])])
    return torch.cat(keys).numpy(), torch.cat(log_p).numpy()


@pytest.mark.parametrize(("context", "stride"), [(64, 32), (64, 64), (40, 23)])
@pytest.mark.parametrize("batch_tokens", [1, 200])
def test_batched_windows_give_each_row_the_key_and_the_probability_of_a_pass_of_its_own(
    wiki, context, stride, batch_tokens
):
    keys, log_p = naive_keys_and_log_p(wiki, context, stride)
    windows = cut_windows(FIRST, COUNTS, context=context, stride=stride)
    seen = []
    for rows, found in window_keys(wiki, windows, read, batch_tokens):
        np.testing.assert_allclose(found, keys[rows], atol=2e-4)
        seen += rows.tolist()
    assert sorted(seen) == list(range(sum(COUNTS)))
    for part in window_scores(wiki, windows, read, batch_tokens):
        np.testing.assert_allclose(part.keys, keys[part.rows], atol=2e-4)
        np.testing.assert_allclose(part.log_p, log_p[part.rows], atol=1e-4)
        np.testing.assert_array_equal(part.targets, np.concatenate(DOCUMENTS)[part.rows])
        assert (part.top_log_p >= part.log_p - 1e-6).all()
