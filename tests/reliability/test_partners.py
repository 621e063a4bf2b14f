"""A store joined to what it wasn't made with is refused, and the difference named; who means it says so."""

import json
import shutil

import pytest
import torch
from faults.material import make_model, run
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

import knnstore
from knnstore.datastore.store import Datastore
from knnstore.errors import MismatchError, MismatchWarning
from knnstore.lm.forward import key_model
from knnstore.lm.loading import load_model

SCORE = ("score", "--store", "books", "--k", "8", "--lambda", "0.3", "--temperature", "5")


def fine_tuned(folder):
    """The same LM after three steps of training on other text."""
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    optimiser = torch.optim.AdamW(model.parameters(), 1e-3)
    torch.manual_seed(1)
    for _ in range(3):
        ids = torch.randint(0, 8192, (2, 24))
        model(input_ids=ids, labels=ids).loss.backward()
        optimiser.step()
        optimiser.zero_grad()
    model.save_pretrained(folder)


def other_of_the_same_width(folder):
    weights = load_file(folder / "model.safetensors")
    generator = torch.Generator().manual_seed(2)
    save_file(
        {n: torch.randn(w.shape, generator=generator) * 0.1 for n, w in weights.items()},
        folder / "model.safetensors",
        {"format": "pt"},
    )


def other_tokenizer_of_the_same_size(folder):
    """Two tokens change places."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    words = sorted(tokenizer["model"]["vocab"], key=tokenizer["model"]["vocab"].get)[500:502]
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary[words[0]], vocabulary[words[1]] = vocabulary[words[1]], vocabulary[words[0]]
    path.write_text(json.dumps(tokenizer))


OTHERS = {
    "another LM of the same width": (other_of_the_same_width, "weights differ"),
    "a fine-tuned version of the same LM": (fine_tuned, "weights differ"),
    "another tokenizer of the same size": (other_tokenizer_of_the_same_size, "tokenizer differ"),
}


@pytest.fixture(autouse=True)
def nothing_loaded():
    """An LM is loaded once a process, by its name: here other ones have the same."""
    key_model.cache_clear()
    load_model.cache_clear()


@pytest.fixture(params=OTHERS)
def other(request, here):
    """The folder of a store with another LM beside it, and what is different about that."""
    change, told = OTHERS[request.param]
    shutil.copytree(here / "lm", here / "other")
    change(here / "other")
    return here, told


@pytest.mark.parametrize("command", [SCORE, ("neighbours", "the store keeps", "--store", "books", "--k", "2")])
def test_another_partner_is_refused_by_what_differs_and_taken_by_who_means_it(other, command):
    here, told = other
    code, said = run(here, *command, "--model", "other")
    assert code == 1
    assert "was made by model 'lm' (" in said
    assert "not by 'other' (" in said
    assert f"{told}. Give the model that made the store with --model, or --allow-mismatch to accept this" in said
    code, said = run(here, *command, "--model", "other", "--allow-mismatch")
    assert code == 0, said
    assert f": {told}" in said  # it is told all the same
    assert "allow-mismatch" not in said


def test_another_partner_adds_no_keys_unless_that_is_meant(other):
    here, told = other
    (here / "books").unlink()
    (here / "books").mkdir()
    (here / "books" / "9.txt").write_text("a store that was read once is read every time " * 9)
    ingest = ("ingest", "--corpus", "books/", "--workers", "0", "--chunk-rows", "256", "--context", "32")
    code, said = run(here, *ingest, "--model", "other")
    assert (code, f"model.{told.split()[0]} " in said, "--allow-mismatch to accept this" in said) == (1, True, True)
    code, said = run(here, *ingest, "--model", "other", "--allow-mismatch")
    assert (code, "mismatch  books.knnstore holds keys of other settings: model." in said) == (0, True), said
    assert len(Datastore(here / "books.knnstore").segments) == 2


def test_another_key_layer_is_refused_and_allowed_alike(here, monkeypatch):
    with monkeypatch.context() as without:
        without.setattr("knnstore.lm.keylayer._is_feed_forward", lambda *_: False)  # an LM without such a part
        key_model.cache_clear()
        code, said = run(here, *SCORE)
        assert (code, "holds keys of ffn-input, not hidden" in said) == (1, True)
        code, said = run(here, *SCORE, "--allow-mismatch")
        assert (code, "mismatch  books.knnstore holds keys of ffn-input, not hidden" in said) == (0, True)
    key_model.cache_clear()
    (here / "books").unlink()
    (here / "books").mkdir()
    (here / "books" / "9.txt").write_text("a store that was read once is read every time " * 9)
    ingest = ("ingest", "--corpus", "books/", "--workers", "0", "--chunk-rows", "256", "--context", "32")
    code, said = run(here, *ingest, "--key", "hidden")
    assert (code, "key.layer ffn-input (now hidden)" in said) == (1, True)
    assert run(here, *ingest, "--key", "hidden", "--allow-mismatch")[0] == 0


def test_keys_of_another_width_or_dtype_never_meet(here):
    config = GPT2Config(vocab_size=8192, n_positions=64, n_embd=24, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(here / "wide")
    AutoTokenizer.from_pretrained(here / "lm").save_pretrained(here / "wide")
    code, said = run(here, *SCORE, "--model", "wide", "--allow-mismatch")
    assert (code, "keys of 16 dimensions, 'wide' makes keys of 24: they can't be compared" in said) == (
        1,
        True,
    )
    ingest = ("ingest", "--corpus", "books/", "--workers", "0", "--chunk-rows", "256", "--context", "32")
    for options, told in (
        (("--model", "wide"), "key.dimension 16 (now 24)"),
        (("--key-dtype", "float16"), "key_dtype int8 (now float16)"),
    ):
        code, said = run(here, *ingest, *options, "--allow-mismatch")
        assert (code, f"can't hold both, even with --allow-mismatch: {told}" in said) == (1, True), said


def test_an_lm_in_memory_is_held_against_the_keys_and_a_mismatch_is_a_warning_if_it_is_allowed(here, monkeypatch):
    monkeypatch.chdir(here)
    same = AutoModelForCausalLM.from_pretrained("lm", dtype="float32")
    with knnstore.attach(same, "books"):
        pass
    other_of_the_same_width(make_model(here / "other"))
    other = AutoModelForCausalLM.from_pretrained("other", dtype="float32")
    with pytest.raises(MismatchError, match=r"this model makes other keys .* or give allow_mismatch=True"):
        knnstore.attach(other, "books")
    with pytest.warns(MismatchWarning, match="this model makes other keys"):
        attached = knnstore.attach(other, "books", allow_mismatch=True)
    attached.detach()
    with (
        pytest.warns(MismatchWarning, match="weights differ"),
        knnstore.open("books", "other", allow_mismatch=True) as store,
    ):
        assert len(store.neighbours("the store keeps", k=3)) == 3
