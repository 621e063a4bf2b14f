"""Features of a prediction, against what they are said to be."""

import numpy as np
import pytest

from knnstore.mixing.features import LM_FEATURES, STORE_FEATURES, Outlook, lm_features, store_features
from knnstore.neighbours import Neighbours


def named(features, names, row=0):
    return dict(zip(names, features[row].tolist(), strict=True))


OUTLOOK = Outlook(
    np.array([1.5, 1.5], np.float32),
    np.array([[3, 7], [3, 7]]),
    np.log(np.array([[0.5, 0.25], [0.5, 0.25]], np.float32)),
)


def test_the_lms_features_are_its_entropy_and_first_choices():
    found = named(lm_features(OUTLOOK), LM_FEATURES)
    assert found["lm_entropy"] == 1.5
    assert np.exp([found["lm_log_top"], found["lm_log_second"]]) == pytest.approx([0.5, 0.25])
    assert found["lm_mass_leading"] == pytest.approx(0.75)


def test_the_stores_features_say_how_near_and_how_far_agreed():
    distances = np.array([[2, 4, 4, 6]], np.float32)
    neighbours = Neighbours(distances, np.array([[7, 9, 7, 3]]))
    outlook = Outlook(OUTLOOK.entropy[:1], OUTLOOK.leading[:1], OUTLOOK.leading_log_p[:1])
    found = named(store_features(outlook, neighbours, 4.0), STORE_FEATURES)
    assert (found["first_distance"], found["last_distance"], found["spread"]) == (0.5, 1.5, 1.0)
    assert found["distinct_all"] == pytest.approx(np.log(3))
    weights = np.exp((2 - distances[0]) / (4.0 / 4))
    weights /= weights.sum()
    assert np.exp(found["store_log_top_soft"]) == pytest.approx(weights[0] + weights[2], rel=1e-4)
    assert np.exp(found["store_log_of_lm_top_soft"]) == pytest.approx(weights[3], rel=1e-3)
    assert np.exp(found["lm_log_of_store_top_soft"]) == pytest.approx(0.25)
    assert found["overlap_soft"] == pytest.approx(min(weights[3], 0.5) + min(weights[0] + weights[2], 0.25), rel=1e-4)
    votes = np.array([weights[0] + weights[2], weights[1], weights[3]])
    assert found["store_entropy_soft"] == pytest.approx(-(votes * np.log(votes)).sum(), rel=1e-4)


def test_too_few_neighbours_count_for_nothing_and_none_are_all_zero():
    distances = np.array([[2, np.inf, np.inf], [np.inf] * 3], np.float32)
    neighbours = Neighbours(distances, np.array([[7, -1, -1], [-1, -1, -1]]))
    features = store_features(OUTLOOK, neighbours, 4.0)
    found = named(features, STORE_FEATURES)
    assert np.exp(found["store_log_top_sharp"]) == pytest.approx(1, abs=1e-4)
    assert found["spread"] == 0
    assert not features[1].any()
    assert np.isfinite(features).all()


def test_a_query_has_the_same_features_whichever_others_are_asked_with_it():
    rng = np.random.default_rng(0)
    count = 2500
    outlook = Outlook(
        rng.uniform(1, 5, count).astype(np.float32),
        np.argsort(rng.random((count, 20)), axis=1)[:, :4],
        np.sort(np.log(rng.uniform(0, 0.25, (count, 4))), axis=1)[:, ::-1].astype(np.float32),
    )
    distances = np.sort(rng.uniform(1, 9, (count, 16)), axis=1).astype(np.float32)
    neighbours = Neighbours(distances, rng.integers(0, 20, (count, 16)))
    together = store_features(outlook, neighbours, 3.0)
    for row in (0, 1023, 1024, 2499):
        alone = store_features(
            Outlook(outlook.entropy[row, None], outlook.leading[row, None], outlook.leading_log_p[row, None]),
            Neighbours(distances[row, None], neighbours.values[row, None]),
            3.0,
        )
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-5, atol=1e-6)
