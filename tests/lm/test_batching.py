"""A text has the states that it has alone, whatever it shares a batch with."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Phi3Config, Phi3ForCausalLM

from knnstore.lm.forward import KeyModel, window_keys
from knnstore.lm.loading import adopt_model
from knnstore.lm.scoring import window_scores
from knnstore.windows import cut_windows

SIZE = {
    "vocab_size": 500,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 128,
}
ENDS = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
CONTEXT = 96
LENGTHS = np.array([1, 3, 90, 5, 17, 33, 8, 60, 31, 32, 2, 90])
FIRST = np.cumsum(LENGTHS) - LENGTHS
TOKENS = np.random.default_rng(0).integers(1, 500, LENGTHS.sum())


def read(document, begin, end):
    return TOKENS[FIRST[document] + begin : FIRST[document] + end]


def made(kind, **scaling):
    """A small random LM of strong attention, with the rotary embedding that ``scaling`` says."""
    torch.manual_seed(0)
    if kind == "phi3":
        config = Phi3Config(**SIZE, **ENDS, num_key_value_heads=4, max_position_embeddings=128, **scaling)
        model = Phi3ForCausalLM(config)
    else:
        model = LlamaForCausalLM(LlamaConfig(**SIZE, **ENDS, max_position_embeddings=32 if scaling else 128, **scaling))
    for weight in model.parameters():
        if weight.dim() > 1:
            weight.data.mul_(6)
    return model.eval()


LONGROPE = {
    "original_max_position_embeddings": 32,
    "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [4.0 + i for i in range(8)]},
}
DYNAMIC = {"rope_scaling": {"type": "dynamic", "factor": 4.0}}


def windows_of(lengths):
    return cut_windows(np.cumsum(lengths) - lengths, lengths, context=CONTEXT, stride=CONTEXT // 2)


def by_row(parts):
    rows = np.concatenate([rows for rows, _ in parts])
    return np.concatenate([keys for _, keys in parts])[np.argsort(rows)]


@pytest.mark.parametrize(("kind", "scaling"), [("phi3", LONGROPE), ("llama", DYNAMIC)], ids=["longrope", "dynamic"])
def test_frequencies_that_follow_the_longest_text_of_a_batch_are_those_of_each_text_alone(kind, scaling):
    model = KeyModel(adopt_model(made(kind, **scaling)), "ffn-input")
    assert model.padding(CONTEXT) == "exact"
    windows = windows_of(LENGTHS)
    keys = by_row(list(window_keys(model, windows, read, 4096)))
    parts = list(window_scores(model, windows, read, 4096))
    log_p = by_row([(part.rows, part.log_p) for part in parts])
    for place in range(len(windows)):
        fresh = made(kind, **scaling)  # one that has read nothing yet
        begin, end = int(windows.start[place]), int(windows.start[place] + windows.length[place])
        stream = np.concatenate([[0], read(int(windows.document[place]), 0, int(LENGTHS[windows.document[place]]))])
        rows = slice(int(windows.row[place]), int(windows.row[place] + windows.scored[place]))
        alone, logits = KeyModel(adopt_model(fresh), "ffn-input").keys_and_logits(stream[None, begin:end], 0)
        scored = int(windows.scored[place])
        np.testing.assert_allclose(keys[rows], alone[0, -scored:].numpy(), atol=1e-4)
        said = logits[0, -scored:].double().log_softmax(-1).numpy()
        expected = np.take_along_axis(said, stream[end - scored + 1 : end + 1, None], axis=1)[:, 0]
        np.testing.assert_allclose(log_p[rows], expected, atol=1e-4)


def test_up_to_the_original_length_such_a_model_shares_batches_like_any_other():
    assert KeyModel(adopt_model(made("phi3", **LONGROPE)), "ffn-input").padding(32) == "ladder"


def test_texts_that_change_each_other_are_run_alone():
    model = made("llama")
    model.model.layers[0].register_forward_hook(
        lambda module, inputs, output: output - output.mean(0, keepdim=True) / 2
    )
    loaded = KeyModel(adopt_model(model), "ffn-input")
    assert loaded.padding(CONTEXT) == "alone"
    batches = []
    model.register_forward_pre_hook(
        lambda module, args, given: batches.append(len(given["input_ids"])), with_kwargs=True
    )
    list(window_scores(loaded, windows_of(LENGTHS), read, 4096))
    assert set(batches) == {1}


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_the_keys_of_a_document_have_the_same_bits_whatever_shares_its_batch(threads):
    model = KeyModel(adopt_model(made("llama")), "ffn-input")
    assert model.padding(CONTEXT) == "ladder"
    before = torch.get_num_threads()
    whole = by_row(list(window_keys(model, windows_of(LENGTHS), read, 4096)))
    torch.set_num_threads(threads)
    try:
        for documents in ([2], [0], [11, 3, 4], [5, 6, 7, 8], [1, 9, 10]):
            lengths = LENGTHS[documents]
            some = lambda document, begin, end: read(documents[document], begin, end)  # noqa: B023, E731
            for batch_tokens in (1, 100, 4096):
                keys = by_row(list(window_keys(model, windows_of(lengths), some, batch_tokens)))
                rows = np.concatenate([np.arange(FIRST[d], FIRST[d] + LENGTHS[d]) for d in documents])
                np.testing.assert_array_equal(keys, whole[rows])
    finally:
        torch.set_num_threads(before)
