"""The key point is found by structure, in every family of LMs: held against a hook written by hand."""

import numpy as np
import pytest
import torch
from families import FAMILIES, module_at, tiny_model

from knnstore.datastore.manifest import ModelIdentity
from knnstore.errors import ModelError
from knnstore.lm.forward import KeyModel
from knnstore.lm.keylayer import find_key_point
from knnstore.lm.loading import LoadedModel

IDS = np.random.default_rng(0).integers(1, 64, (3, 17))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    _, feed_forward, attention = FAMILIES[request.param]
    try:
        model = tiny_model(request.param)
    except ValueError as error:
        pytest.skip(f"this transformers has no {request.param}: {error}")
    return model, feed_forward, attention


def key_model(model, layer="ffn-input"):
    identity = ModelIdentity("tiny", "", "", "", 64)
    return KeyModel(LoadedModel(model, None, identity, None, torch.device("cpu"), "float32"), layer)


def by_hand(model, path, ids):
    """The input of the module at ``path`` (alternatives of its last name by |), and the logits, of a full pass."""
    module = module_at(model, path)
    seen = []

    def keep(_, args, kwargs):
        seen.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    handle = module.register_forward_pre_hook(keep, with_kwargs=True)
    with torch.inference_mode():
        output = model(input_ids=torch.from_numpy(ids), output_hidden_states=True)
    handle.remove()
    (states,) = seen
    return states.reshape(*ids.shape, -1), output.logits, output.hidden_states[-1]


def test_the_key_is_the_input_of_the_last_feed_forward_block(family):
    model, feed_forward, _ = family
    found = key_model(model)
    if feed_forward is None:
        assert found.point.layer == "hidden"
        return
    expected, _, _ = by_hand(model, feed_forward, IDS)
    assert found.point.layer == "ffn-input"
    assert torch.equal(found.keys(IDS), expected)


def test_the_attention_input_is_the_input_of_the_last_attention(family):
    model, _, attention = family
    if attention is None:
        with pytest.raises(ModelError, match="has no attention"):
            find_key_point(model, "attention-input")
        return
    expected, _, _ = by_hand(model, attention, IDS)
    assert torch.equal(key_model(model, "attention-input").keys(IDS), expected)


def test_hidden_is_the_models_output(family):
    model, _, _ = family
    with torch.inference_mode():
        expected = model.base_model(input_ids=torch.from_numpy(IDS)).last_hidden_state
    assert torch.equal(key_model(model, "hidden").keys(IDS), expected)


@pytest.mark.parametrize("layer", ["ffn-input", "hidden"])
def test_stopping_early_changes_no_bit_of_the_keys(family, layer):
    model, _, _ = family
    found = key_model(model, layer)
    keys, _ = found.keys_and_logits(IDS, 0)
    assert torch.equal(found.keys(IDS), keys)


@pytest.mark.parametrize("first", [0, 9, 16])
def test_the_logits_are_the_models_own_from_any_position_on(family, first):
    model, _, _ = family
    keys, logits = key_model(model).keys_and_logits(IDS, first)
    with torch.inference_mode():
        expected = model(input_ids=torch.from_numpy(IDS)).logits[:, first:]
    assert keys.shape[:2] == logits.shape[:2] == (3, 17 - first)
    torch.testing.assert_close(logits, expected)


def test_padding_on_the_right_does_not_change_a_key(family):
    model, _, _ = family
    found = key_model(model)
    padded = np.concatenate([IDS[:, :11], np.zeros((3, 6), np.int64)], axis=1)
    torch.testing.assert_close(found.keys(padded)[:, :11], found.keys(IDS[:, :11]))
    torch.testing.assert_close(found.keys(padded)[:, :11], found.keys(IDS)[:, :11])


def test_a_layer_that_nobody_knows_is_refused_with_the_list(family):
    with pytest.raises(ModelError, match="'logits': give one of ffn-input, attention-input, hidden"):
        find_key_point(family[0], "logits")
