"""λ p_kNN + (1 − λ) p_LM, and the λ that does it best."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnstore.mixing.interpolation import best_lambda, best_weights, mix, mix_sources

probabilities = st.lists(st.tuples(st.floats(1e-6, 1), st.floats(0, 1)), min_size=1, max_size=30)


@given(probabilities, st.floats(0, 0.999))
def test_the_mixture_is_the_weighted_sum(pairs, lambda_):
    lm, knn = np.array(pairs).T
    np.testing.assert_allclose(np.exp(mix(np.log(lm), knn, lambda_)), lambda_ * knn + (1 - lambda_) * lm, rtol=1e-9)


def test_probabilities_too_small_for_a_float_mix_in_log_space():
    assert mix(np.array([-2000.0]), np.array([0.0]), 0.5)[0] == pytest.approx(-2000 + np.log(0.5))


def test_no_weight_leaves_the_lm_as_it_is_and_all_of_it_the_store():
    assert mix([-3.0, -4.0], [0.0, 1.0], 0).tolist() == [-3, -4]
    assert mix([-3.0, -4.0], [0.0, 1.0], 1).tolist() == [-np.inf, 0]


@given(probabilities)
def test_no_lambda_of_a_grid_beats_the_best(pairs):
    lm, knn = np.array(pairs).T
    (found,), (loss,) = best_lambda(np.log(lm), knn[:, None])
    losses = [-mix(np.log(lm), knn, lambda_).mean() for lambda_ in np.linspace(0, 0.999, 1000)]
    # at the edge a step of the rounding, 0.00005, can matter in the loss where p_LM is tiny
    assert loss <= min(losses) + 1e-3
    assert loss == pytest.approx(-mix(np.log(lm), knn, found).mean())


def test_the_best_lambda_is_found_to_three_digits():
    # three tokens in ten the store knows for sure, and the LM gives everything 0.1
    lm, knn = np.full(10, 0.1), np.array([1.0] * 3 + [0.0] * 7)
    (found,), _ = best_lambda(np.log(lm), knn[:, None])
    assert found == pytest.approx((0.3 - 0.7 / 9), abs=1e-4)  # the root of 0.3 · 9 / (1 + 9λ) = 0.7 / (1 − λ)


def test_each_setting_has_its_own_lambda_and_the_extremes_are_reached():
    lm = np.full(4, 0.5)
    found, losses = best_lambda(np.log(lm), np.array([[0.0, 1.0, 0.5]] * 4))
    assert found[:2].tolist() == [0, 0.999]
    np.testing.assert_allclose(losses, [np.log(2), -np.log(0.9995), np.log(2)], rtol=1e-6)


def test_a_probability_of_zero_by_both_is_no_crash():
    _, (loss,) = best_lambda(np.array([-800.0, -1.0]), np.array([[0.0], [0.9]]))
    assert np.isfinite(loss)


def test_one_source_mixes_as_the_store_does_and_several_add_up():
    rng = np.random.default_rng(3)
    log_lm, sources = np.log(rng.uniform(0.01, 1, 50)), rng.uniform(0, 1, (50, 2))
    np.testing.assert_allclose(mix_sources(log_lm, sources[:, :1], [0.3]), mix(log_lm, sources[:, 0], 0.3), rtol=1e-12)
    expected = np.log(0.5 * np.exp(log_lm) + 0.3 * sources[:, 0] + 0.2 * sources[:, 1])
    np.testing.assert_allclose(mix_sources(log_lm, sources, [0.3, 0.2]), expected, rtol=1e-12)
    np.testing.assert_allclose(mix_sources(log_lm, sources, np.tile([0.3, 0.2], (50, 1))), expected, rtol=1e-12)
    np.testing.assert_allclose(mix_sources(log_lm, sources, [0.0, 0.0]), log_lm, rtol=1e-12)


def test_the_best_weights_of_one_source_are_the_best_lambda_and_of_two_no_other_is_better():
    rng = np.random.default_rng(4)
    log_lm, sources = np.log(rng.uniform(0.01, 0.5, 400)), rng.uniform(0, 0.7, (400, 2)) ** 2
    (lambda_,), (loss,) = best_lambda(log_lm, sources[:, :1])
    weights, same = best_weights(log_lm, sources[:, :1])
    assert weights[0] == pytest.approx(lambda_, abs=0.02)
    assert same == pytest.approx(loss, abs=1e-4)
    weights, loss = best_weights(log_lm, sources)
    for other in np.random.default_rng(5).dirichlet([1, 1, 1], 200)[:, 1:]:
        assert -mix_sources(log_lm, sources, other).mean() >= loss - 1e-4
