"""p_kNN against the definition written with a dictionary."""

import math
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnstore.mixing.knn import target_probabilities
from knnstore.neighbours import ABSENT, Neighbours, nearest_of_all


def naive(distances, values, target, k, temperature):
    """Σ softmax(−d / T) over the neighbours whose value is the target; 0 where none was found."""
    weights = defaultdict(float)
    found = [(d, v) for d, v in list(zip(distances, values, strict=True))[:k] if v != ABSENT]
    for distance, value in found:
        weights[value] += math.exp(-(distance - found[0][0]) / temperature)
    return weights[target] / sum(weights.values()) if found else 0.0


@st.composite
def searches(draw):
    """Queries that found between none and ``width`` neighbours each, padded with inf and −1."""
    width, queries = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    distances = np.full((queries, width), np.inf, np.float32)
    values = np.full((queries, width), ABSENT, np.int64)
    for query in range(queries):
        found = draw(st.lists(st.floats(0, 100, width=32), max_size=width))
        distances[query, : len(found)] = sorted(found)
        values[query, : len(found)] = draw(st.lists(st.integers(0, 4), min_size=len(found), max_size=len(found)))
    targets = np.array(draw(st.lists(st.integers(0, 4), min_size=queries, max_size=queries)), np.int64)
    return Neighbours(distances, values), targets


@given(
    searches(),
    st.lists(st.integers(1, 20), min_size=1, max_size=4, unique=True).map(sorted),
    st.lists(st.floats(0.125, 50, width=32), min_size=1, max_size=3),
)
def test_probabilities_are_those_of_the_definition_for_every_k_and_temperature(search, ks, temperatures):
    neighbours, targets = search
    result = target_probabilities(neighbours, targets, ks, temperatures)
    assert result.shape == (len(targets), len(ks), len(temperatures))
    for query, (distances, values) in enumerate(zip(neighbours.distances, neighbours.values, strict=True)):
        expected = [[naive(distances, values, targets[query], k, t) for t in temperatures] for k in ks]
        np.testing.assert_allclose(result[query], expected, rtol=1e-4, atol=1e-6)


def test_more_queries_than_a_block_are_each_given_their_own_probability():
    generator = np.random.default_rng(0)
    distances = np.sort(generator.uniform(0, 9, (1300, 16)).astype(np.float32), axis=1)
    values, targets = generator.integers(3, size=(1300, 16)), generator.integers(3, size=1300)
    result = target_probabilities(Neighbours(distances, values), targets, [16], [2.0])[:, 0, 0]
    expected = [naive(d, v, t, 16, 2.0) for d, v, t in zip(distances, values, targets, strict=True)]
    np.testing.assert_allclose(result, expected, rtol=1e-4)


def test_probabilities_of_all_values_sum_to_one():
    neighbours = Neighbours(np.array([[1, 2, 3, np.inf]], np.float32), np.array([[7, 8, 7, ABSENT]]))
    total = sum(target_probabilities(neighbours, np.array([value]), [4], [1.0])[0, 0, 0] for value in (7, 8))
    assert total == pytest.approx(1)


def test_the_padding_is_no_token():
    neighbours = Neighbours(np.array([[1, np.inf]], np.float32), np.array([[7, ABSENT]]))
    assert target_probabilities(neighbours, np.array([ABSENT]), [2], [1.0])[0, 0, 0] == 0


def test_a_query_without_neighbours_is_told_apart_from_one_whose_neighbours_disagree():
    neighbours = Neighbours(np.array([[np.inf], [1]], np.float32), np.array([[ABSENT], [3]]))
    assert target_probabilities(neighbours, np.array([5, 5]), [1], [1.0]).tolist() == [[[0]], [[0]]]
    assert neighbours.found.tolist() == [False, True]


def test_vast_distances_and_a_tiny_temperature_leave_the_nearest_alone():
    neighbours = Neighbours(np.array([[1e30, 2e30]], np.float32), np.array([[1, 2]]))
    assert target_probabilities(neighbours, np.array([1]), [1, 2], [1e-6])[0].tolist() == [[1], [1]]


@given(st.data(), st.integers(1, 4), st.integers(1, 8), st.integers(1, 3))
def test_the_nearest_of_several_searches_are_those_of_one_search_of_everything(data, stores, k, queries):
    every, parts, sizes = [], [], []
    for _ in range(stores):
        keys = data.draw(st.lists(st.integers(0, 9), max_size=10))
        sizes.append(len(keys))
        order = np.argsort(keys, kind="stable")[:k]
        pad = (0, k - len(order))
        distances = np.pad(np.array(keys, np.float32)[order], pad, constant_values=np.inf)
        rows = np.pad(order, pad, constant_values=ABSENT)
        values = np.where(rows == ABSENT, ABSENT, rows + 100 * len(parts))
        parts.append(Neighbours(*(np.tile(column, (queries, 1)) for column in (distances, values, rows))))
        every += [(distance, len(every) + place) for place, distance in enumerate(keys)]
    found = nearest_of_all(parts, sizes)
    expected = sorted(range(len(every)), key=lambda row: (every[row][0], row))[:k]
    for query in range(queries):
        rows = [row for row in found.rows[query] if row != ABSENT]
        assert rows == expected
        assert found.distances[query].tolist()[: len(rows)] == [every[row][0] for row in rows]
    assert (np.isinf(found.distances) == (found.values == ABSENT)).all()
