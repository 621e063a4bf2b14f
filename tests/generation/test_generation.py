"""Text that LM and store write together, and what each token owes to whom."""

import threading

import numpy as np
import pytest
import torch

import knnstore
from knnstore.errors import UsageError
from knnstore.lm.loading import LoadedModel
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
