"""A gate, its training, and what may not pass for one."""

import numpy as np
import pytest

from knnstore.mixing.gate import Gate, MemorySource
from knnstore.scoring.gate_training import Lesson, gated_log_p, train_gate

STORE = MemorySource("store", 8, 2.0)


def lesson(count, seed):
    """The first feature says which of LM and store is right; the second says nothing."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(count, 2)).astype(np.float32)
    right = features[:, 0] > 0
    lm, store = np.where(right, 0.05, 0.6), np.where(right, 0.7, 0.02).astype(np.float32)
    return Lesson(features, np.log(lm), store[:, None], np.arange(count) * 8 // count)


def test_a_gate_learns_when_to_trust_the_store_and_beats_the_best_constant_on_unseen_tokens():
    gate = train_gate(lesson(4000, 0), ("telling", "idle"), (STORE,))
    unseen = lesson(2000, 1)
    constant = -np.log(0.5 * np.exp(unseen.log_lm) + 0.5 * unseen.sources[:, 0]).mean()
    assert -gated_log_p(gate, unseen).mean() < constant - 0.2
    weights = gate.weights(np.array([[2, 0], [-2, 0]], np.float32))
    assert weights[0, 1] > 0.9
    assert weights[1, 1] < 0.1
    np.testing.assert_allclose(weights.sum(axis=1), 1, rtol=1e-5)


def test_training_twice_makes_the_same_gate():
    assert train_gate(lesson(2500, 0), ("a", "b"), (STORE,)) == train_gate(lesson(2500, 0), ("a", "b"), (STORE,))


def test_a_text_unlike_all_that_was_learned_from_gives_weights_all_the_same():
    gate = train_gate(lesson(2500, 0), ("a", "b"), (STORE,))
    assert np.isfinite(gate.weights(np.array([[1e30, -1e30]], np.float32))).all()


def gate(**changes):
    whole = {
        "features": ("a",),
        "sources": (STORE,),
        "centre": (0.0,),
        "scale": (1.0,),
        "hidden": ((1.0,),),
        "hidden_bias": (0.0,),
        "output": ((0.5, 0.5),),
        "output_bias": (0.0, 0.0),
    }
    return Gate(**whole | changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"features": ("a", "b")},
        {"sources": ()},
        {"output": ((0.5,),)},
        {"hidden": ((float("nan"),),)},
        {"scale": (0.0,)},
        {"output_bias": (0.0, float("inf"))},
    ],
)
def test_weights_that_do_not_fit_are_refused(changes):
    assert gate().weights(np.zeros((1, 1), np.float32)).tolist() == [[0.5, 0.5]]
    with pytest.raises(ValueError, match="gate"):
        gate(**changes)


@pytest.mark.parametrize(
    "wrong", [("oracle", 1, 1.0), ("store", 0, 1.0), ("cache", 0, 0.0), ("store", 1, float("inf"))]
)
def test_impossible_sources_are_refused(wrong):
    with pytest.raises(ValueError, match=r"source|k is|temperature"):
        MemorySource(*wrong)
