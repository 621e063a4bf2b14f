"""Keys of encoder-decoder models: found by structure in the decoder, held against a hook written by hand."""

import numpy as np
import pytest
import torch
from translation import FAMILIES, WORDS, numbers, tiny_model, word_tokenizer

from knnstore.attachment.mixer import Mixer
from knnstore.datastore.manifest import ModelIdentity
from knnstore.lm.forward import KeyModel, window_keys
from knnstore.lm.hooks import MixtureHooks
from knnstore.lm.loading import LoadedModel
from knnstore.lm.scoring import window_scores
from knnstore.lm.sources import SourceBatch
from knnstore.mixing.mixture import Mixture
from knnstore.mixing.setting import Setting
from knnstore.neighbours import Neighbours
from knnstore.windows import cut_windows

PAIRS = numbers(7, ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"], seed=3)


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return tiny_model(request.param), *FAMILIES[request.param][1:]


@pytest.fixture(scope="module")
def tokenizer():
    return word_tokenizer()


def key_model(model, tokenizer, layer="decoder-ffn-input"):
    identity = ModelIdentity("tiny", "", "", "", len(WORDS))
    return KeyModel(LoadedModel(model, tokenizer, identity, None, torch.device("cpu"), "float32"), layer)


def by_hand(model, path, source, target):
    """Of one pair, unpadded: the input of the module at ``path`` and ln p, at every position of the target."""
    seen = []

    def keep(_, args, kwargs):
        seen.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    handle = model.get_submodule(path).register_forward_pre_hook(keep, with_kwargs=True)
    start = model.config.decoder_start_token_id
    with torch.inference_mode():
        output = model(
            input_ids=torch.tensor([source]),
            decoder_input_ids=torch.tensor([[start, *target[:-1]]]),
            output_hidden_states=True,
        )
    handle.remove()
    (states,) = seen
    return states[0], output.logits[0].log_softmax(-1), output.decoder_hidden_states[-1][0]


@pytest.fixture(scope="module")
def tokens(tokenizer):
    return [tuple(tokenizer(side).input_ids for side in pair) for pair in PAIRS]


def windows_of(tokens):
    lengths = np.array([len(target) for _, target in tokens])
    first = np.cumsum(lengths) - lengths
    read = lambda document, begin, end: np.array(tokens[document][1][begin:end])  # noqa: E731
    return cut_windows(first, lengths, context=32, stride=32), read, lambda document: np.array(tokens[document][0])


@pytest.mark.parametrize("place", [0, 1, 2], ids=["ffn-input", "attention-input", "hidden"])
def test_the_keys_of_a_padded_batch_are_those_of_each_pair_alone(family, tokenizer, tokens, place):
    model, *paths = family
    name = ["ffn-input", "attention-input", "hidden"][place]
    found = key_model(model, tokenizer, f"decoder-{name}")
    assert found.point.layer == f"decoder-{name}"
    windows, read, sources = windows_of(tokens)
    parts = list(window_keys(found, windows, read, 40, sources))
    assert len(parts) > 1
    rows = np.concatenate([rows for rows, _ in parts])
    keys = np.concatenate([keys for _, keys in parts])[np.argsort(rows)]
    expected = [by_hand(model, paths[place % 2], source, target)[2 if place == 2 else 0] for source, target in tokens]
    np.testing.assert_allclose(keys, torch.cat(expected).numpy(), rtol=1e-4, atol=1e-5)


def test_the_log_probabilities_are_the_models_own(family, tokenizer, tokens):
    model, path, _ = family
    windows, read, sources = windows_of(tokens)
    parts = list(window_scores(key_model(model, tokenizer), windows, read, 40, sources))
    rows = np.concatenate([part.rows for part in parts])
    log_p = np.concatenate([part.log_p for part in parts])[np.argsort(rows)]
    expected = []
    for source, target in tokens:
        each = by_hand(model, path, source, target)[1]
        expected += each.gather(1, torch.tensor(target)[:, None])[:, 0].tolist()
    np.testing.assert_allclose(log_p, expected, rtol=1e-4, atol=1e-5)


def test_stopping_early_changes_no_bit_of_the_keys(family, tokenizer, tokens):
    found = key_model(family[0], tokenizer)
    source = SourceBatch.of([np.array(source) for source, _ in tokens[:1]], 0)
    ids = np.array([[0, *tokens[0][1][:-1]]])
    assert torch.equal(found.keys(ids, source), found.keys_and_logits(ids, 0, source)[0])


def always_five(queries, _k):
    values = np.full((len(queries), 1), 5)
    return Neighbours(np.zeros((len(queries), 1), np.float32), values, values)


@pytest.fixture
def mixed(family, tokenizer, tokens):
    """A model with hooks that find, for every key, token 5 at no distance; the same model's plain call; the hooks."""
    model = family[0]
    batch = tokenizer([source for source, _ in PAIRS], return_tensors="pt", padding=True)
    labels = tokenizer([target for _, target in PAIRS], return_tensors="pt", padding=True).input_ids
    inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    inputs["labels"] = labels.masked_fill(labels == 0, -100)
    with torch.inference_mode():
        plain = model(**inputs)
    mixer = Mixer(always_five, Mixture(Setting(1, 0.25, 1.0)))
    hooks = MixtureHooks(model, key_model(model, tokenizer).point, mixer)
    yield model, inputs, plain, hooks
    hooks.detach()


def test_attached_the_logits_and_the_loss_are_the_mixtures(mixed):
    model, inputs, plain, _ = mixed
    with torch.inference_mode():
        output = model(**inputs)
    expected = 0.75 * plain.logits.softmax(-1)
    expected[..., 5] += 0.25
    torch.testing.assert_close(output.logits.softmax(-1), expected)
    torch.testing.assert_close(output.logits.logsumexp(-1), plain.logits.logsumexp(-1))
    there = inputs["labels"] >= 0
    targets = inputs["labels"][there][:, None]
    torch.testing.assert_close(output.loss, -expected[there].gather(1, targets).log().mean())
    torch.testing.assert_close(plain.loss, -plain.logits[there].log_softmax(-1).gather(1, targets).mean())


@pytest.mark.parametrize("remembered", [0, 4])
def test_attached_it_generates_alike_with_and_without_a_cache_alone_and_in_a_batch(mixed, tokenizer, remembered):
    model, inputs, _, hooks = mixed
    if remembered:  # the target's own last pairs are a source too
        hooks.detach()
        mixture = Mixture(Setting(1, 0.2, 1.0, remembered, 0.5, 1.0))
        hooks = MixtureHooks(model, key_model(model, tokenizer).point, Mixer(always_five, mixture))
    given = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    options = {"max_new_tokens": 6, "num_beams": 3, "do_sample": False, "forced_eos_token_id": None}
    together = model.generate(**given, **options)
    assert torch.equal(model.generate(**given, **options, use_cache=False), together)
    for line, (ids, mask) in enumerate(zip(given["input_ids"], given["attention_mask"], strict=True)):
        alone = model.generate(ids[None, mask.bool()], attention_mask=mask[None, mask.bool()], **options)[0]
        assert together[line, : len(alone)].tolist() == alone.tolist()
    hooks.detach()


def test_padding_of_the_decoder_is_left_to_the_model(mixed):
    model, inputs, plain, hooks = mixed
    mask = (inputs["labels"] >= 0).long()
    with torch.inference_mode():
        output = model(**inputs, decoder_attention_mask=mask)
        hooks.detach()
        alone = model(**inputs, decoder_attention_mask=mask)
    expected = 0.75 * plain.logits[mask == 1].softmax(-1)
    expected[:, 5] += 0.25
    torch.testing.assert_close(output.logits[mask == 1].log_softmax(-1), expected.log())
    assert (mask == 0).any()
    assert torch.equal(output.logits[mask == 0], alone.logits[mask == 0])
