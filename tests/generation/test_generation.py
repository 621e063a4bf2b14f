"""Text that LM and store write together, and what each token owes to whom."""

import json
import shutil
import threading

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from transformers import GenerationConfig

import knnstore
from knnstore.cli import main
from knnstore.errors import UsageError
from knnstore.lm.forward import key_model
from knnstore.lm.loading import LoadedModel, load_model
from knnstore.lm.spec import SHIPPED_MODELS
from knnstore.lm.streaming import TextStream, in_thread

PROMPT = "An assignment statement evaluates the"


@pytest.fixture(scope="module")
def store(built):
    return knnstore.open(built[0] / "books", dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def joined(store):
    return store.joined(k=16, lambda_=0.6, temperature=10.0)


@pytest.fixture(scope="module")
def written(store, joined):
    generation = store.generate(PROMPT, 24, joined=joined)
    return generation, list(generation)


def test_it_writes_what_generate_of_transformers_writes(store, written):
    generation, tokens = written
    loaded, setting = store.lm.loaded, generation.setting
    ids = torch.tensor([[loaded.bos, *loaded.tokenise(PROMPT).tolist()]])
    options = {"k": setting.k, "lambda_": setting.lambda_, "temperature": setting.temperature}
    with knnstore.attach(loaded.model, store, **options):
        expected = loaded.model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)
    assert [token.token_id for token in tokens] == expected[0, ids.shape[1] :].tolist()
    assert generation.text == loaded.decode(expected[0, ids.shape[1] :].tolist())
    assert generation.tokens == tokens


def test_each_tokens_probability_is_the_mixture_of_its_parts(written):
    generation, tokens = written
    weight = generation.setting.lambda_
    for token in tokens:
        assert token.p == pytest.approx(weight * token.p_store + (1 - weight) * token.p_lm)
        assert token.store_share == pytest.approx(weight * token.p_store / token.p)
        assert 0 <= token.row_share <= token.store_share + 1e-12
    assert max(token.store_share for token in tokens) > 0.5


def test_a_cited_passage_has_the_token_and_stands_in_its_document(built, written):
    generation, tokens = written
    for token in tokens:
        passage = generation.cited(token)
        if passage is None:
            assert token.store_share == 0
        else:
            text = (built[0] / passage.document.path).read_text(encoding="utf-8")
            assert passage.before + passage.token + passage.after in text
            assert passage.token == token.text


def test_the_documents_shares_add_up_to_the_stores_and_with_the_lms_to_all(written):
    generation, tokens = written
    result = generation.attribution
    assert result.tokens == len(tokens)
    assert result.store == pytest.approx(np.mean([token.store_share for token in tokens]))
    assert sum(document.share for document in result.documents) == pytest.approx(result.store)
    assert result.store + result.lm == pytest.approx(1)
    assert [d.tokens for d in result.documents] == sorted((d.tokens for d in result.documents), reverse=True)


def test_a_seed_repeats_a_draw_and_leaves_the_callers_own_alone(store, joined):
    draw = knnstore.Sampling(1.0, seed=3)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    one, other, another = (
        [token.token_id for token in store.generate(PROMPT, 12, sampling=sampling, joined=joined)]
        for sampling in (draw, draw, knnstore.Sampling(1.0, seed=4))
    )
    assert one == other != another
    assert torch.equal(torch.rand(1), expected)


def test_leaving_off_early_ends_the_thread_and_leaves_the_lm_alone(store, joined):
    hooks = len(store.lm.loaded.model._forward_hooks)
    generation = store.generate(PROMPT, 200, joined=joined)
    writing = iter(generation)
    next(writing)
    next(writing)
    before = threading.active_count()
    writing.close()
    assert threading.active_count() == before - 1
    assert len(generation.tokens) == generation.attribution.tokens == 2
    assert len(store.lm.loaded.model._forward_hooks) == hooks


def test_two_texts_at_once_are_what_each_is_alone(store, joined, written):
    other = iter(store.generate("The", 24, joined=joined))
    together = [(token, next(other)) for token in store.generate(PROMPT, 24, joined=joined)]
    assert [token for token, _ in together] == written[1]
    model = store.lm.loaded.model
    ids = torch.tensor([[0, 5, 9]])
    alone = model(ids).logits
    with_one = iter(store.generate("The", 4, joined=joined))
    next(with_one)
    assert torch.equal(model(ids).logits, alone)  # the mixture is the writing thread's alone
    with_one.close()


def test_a_text_outgrows_the_window(store, joined):
    prompt = "objects and " * 124
    generation = store.generate(prompt, 20, joined=joined)
    assert len(store.lm.loaded.tokenise(prompt)) < 256 < len(store.lm.loaded.tokenise(prompt)) + 20
    assert len(list(generation)) == 20


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda store: store.generate("", 0), "max-new-tokens 0"),
        (lambda store: knnstore.Sampling(-1.0), "sampling temperature -1"),
        (lambda store: knnstore.Sampling(top_p=0.0), "top-p 0"),
        (lambda store: knnstore.Sampling(top_k=-1), "top-k -1"),
        (lambda store: knnstore.Sampling(1.0, seed=2**64), "seed 18446744073709551616"),
        (lambda store: knnstore.Sampling(1.0, cutoffs=(("nonesuch", 1.0),)), "cutoff 'nonesuch'"),
        (lambda store: store.joined(lambda_=1.5), "lambda_ is 1.5"),
    ],
)
def test_numbers_that_do_not_fit_are_refused(store, make, told):
    with pytest.raises(UsageError, match=told):
        make(store)


# Attributing a text


def test_a_passage_of_the_store_is_earned_by_its_document(store, joined, built):
    text = (built[0] / "books" / "types.txt").read_text(encoding="utf-8")[:800]
    result = store.attribute(text, joined=joined)
    assert result.tokens == len(store.lm.loaded.tokenise(text))
    assert str(result.documents[0].document) == "books/types.txt"
    assert result.documents[0].share > 0.5
    assert sum(document.share for document in result.documents) == pytest.approx(result.store)
    with pytest.raises(UsageError, match="the text is empty"):
        store.attribute("", joined=joined)


# Text from tokens


class Bytes:
    """Decodes UTF-8 bytes."""

    def decode(self, tokens, **_):
        return bytes(tokens).decode("utf-8", "replace")


def test_a_character_is_told_when_it_is_whole():
    loaded = LoadedModel(None, Bytes(), None, None, None, "")
    stream = TextStream(loaded, list(b"prompt: "))
    told = [stream.add(byte) for byte in "añ🙂b".encode()]
    assert told == ["a", "", "ñ", "", "", "", "🙂", "b"]


def test_what_a_thread_raises_is_raised_where_it_is_waited_for():
    def produce(emit):
        emit(1)
        raise ZeroDivisionError

    items = in_thread(produce)
    assert next(items) == 1
    with pytest.raises(ZeroDivisionError):
        next(items)


# What a model's file asks for


@pytest.fixture
def asking(store, written):
    """The LM with a generation_config that asks for more than the most probable token."""
    model = store.lm.loaded.model
    before = model.generation_config
    model.generation_config = GenerationConfig(
        **{name: getattr(before, name) for name in ("bos_token_id", "eos_token_id")},
        repetition_penalty=1.8,
        no_repeat_ngram_size=2,
        suppress_tokens=[written[1][0].token_id],
        do_sample=True,
        temperature=0.6,
        top_p=0.9,
        min_p=0.05,
        num_beams=3,
        stop_strings=["."],
    )
    yield model
    model.generation_config = before


def ids_of(generation):
    return [token.token_id for token in generation]


def test_what_the_models_file_asks_for_is_told_and_not_applied(store, joined, written, asking):
    generation = store.generate(PROMPT, 24, joined=joined)
    assert ids_of(generation) == [token.token_id for token in written[1]]
    assert generation.asked.items() >= {"repetition_penalty": 1.8, "no_repeat_ngram_size": 2, "top_p": 0.9}.items()
    assert generation.not_applicable == {"num_beams": 3, "stop_strings": ["."]}


def test_what_the_models_file_asks_for_is_applied_on_request(store, joined, written, asking):
    greedy = knnstore.Sampling()
    applied = store.generate(PROMPT, 8, sampling=greedy, joined=joined, generation_config=True)
    loaded, setting = store.lm.loaded, joined.setting
    ids = torch.tensor([[loaded.bos, *loaded.tokenise(PROMPT).tolist()]])
    options = {"k": setting.k, "lambda_": setting.lambda_, "temperature": setting.temperature}
    with knnstore.attach(loaded.model, store, **options):
        expected = loaded.model.generate(
            ids, max_new_tokens=8, do_sample=False, num_beams=1, stop_strings=None, pad_token_id=0
        )
    assert ids_of(applied) == expected[0, ids.shape[1] :].tolist()
    assert applied.tokens[0] != written[1][0]
    asked = knnstore.Sampling.asked_by(asking)
    assert (asked.temperature, asked.top_p, asked.top_k, asked.cutoffs) == (0.6, 0.9, 50, (("min_p", 0.05),))
    assert len(ids_of(store.generate(PROMPT, 4, joined=joined, generation_config=True))) > 0


def test_penalties_at_a_weight_of_0_leave_the_lms_text(store):
    model, ids = store.lm.loaded.model, torch.tensor([[0, *store.lm.loaded.tokenise(PROMPT).tolist()]])
    for more in ({"repetition_penalty": 1.3}, {"exponential_decay_length_penalty": (3, 1.5)}):
        given = {**more, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        alone = model.generate(ids, **given)
        with knnstore.attach(model, store, lambda_=0.0, temperature=10, k=16):
            assert torch.equal(model.generate(ids, **given), alone)


# Sampling


def test_texts_that_are_drawn_at_once_repeat_what_their_seeds_draw_alone(store, joined):
    draws = [knnstore.Sampling(1.0, seed=seed) for seed in (3, 4)]
    alone = [ids_of(store.generate(PROMPT, 8, sampling=draw, joined=joined)) for draw in draws]
    texts = [store.generate(PROMPT, 8, sampling=draw, joined=joined) for draw in draws]
    together = list(zip(*texts, strict=True))
    assert [[token.token_id for token in column] for column in zip(*together, strict=True)] == alone


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-30])
def test_the_smallest_temperatures_take_the_most_probable_token(store, joined, written, temperature):
    draw = knnstore.Sampling(temperature, top_p=5e-324, seed=2**64 - 1)
    assert ids_of(store.generate(PROMPT, 4, sampling=draw, joined=joined)) == [t.token_id for t in written[1][:4]]


def test_the_largest_temperature_draws_any_token(store, joined):
    draw = knnstore.Sampling(1e308, top_k=10**30, seed=-(2**63))
    assert len(set(ids_of(store.generate(PROMPT, 8, sampling=draw, joined=joined)))) > 4


def test_the_command_tells_what_the_models_file_asks_for_and_applies_it_on_request(built, tmp_path):
    model = tmp_path / "wiki-lm"
    shutil.copytree(SHIPPED_MODELS / "wiki-lm", model)
    given = ["generate", "--store", str(built[0] / "books"), "--prompt", PROMPT, "--max-new-tokens", "4"]
    given += ["--model", str(model)]
    first = json.loads(CliRunner().invoke(main, [*given, "--json"]).stdout)["tokens"][0]["token_id"]
    asked = {"repetition_penalty": 1.8, "suppress_tokens": [first]}
    (model / "generation_config.json").write_text(json.dumps({"eos_token_id": 0, "bos_token_id": 0} | asked))
    load_model.cache_clear()  # it knows the model by its folder
    key_model.cache_clear()
    plain, applied = (CliRunner().invoke(main, given + more) for more in ([], ["--generation-config"]))
    assert (plain.exit_code, applied.exit_code) == (0, 0), plain.output + applied.output
    assert (
        "requests repetition_penalty 1.8, 1 suppress_tokens: not applied; --generation-config applies" in plain.stderr
    )
    assert "generation_config.json: applied repetition_penalty 1.8, 1 suppress_tokens" in applied.stderr
    assert plain.stdout != applied.stdout
    said = json.loads(CliRunner().invoke(main, [*given, "--json"]).stdout)["generation_config"]
    assert said == {"asked": asked, "applied": False, "not_applicable": {}}


def test_the_command_refuses_a_seed_that_no_generator_takes(built):
    done = CliRunner().invoke(main, ["generate", "--store", str(built[0] / "books"), "--seed", str(10**30)])
    assert done.exit_code == 2
    assert f"seed {10**30}: give an integer from -{2**63} to {2**64 - 1}" in done.output
