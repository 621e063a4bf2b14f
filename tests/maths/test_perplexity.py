"""Perplexity, bits per byte, and how sure of them one can be."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnstore.perplexity import Likelihood, by_document, gain_interval, gain_percent

documents = st.lists(st.tuples(st.floats(0.1, 10), st.integers(1, 1000), st.floats(0.1, 10)), min_size=2, max_size=30)


def likelihood(nats, tokens, sizes=None):
    return Likelihood(np.array(nats, float), np.array(tokens), np.array(tokens if sizes is None else sizes))


def test_perplexity_is_of_all_tokens_not_the_mean_of_the_documents():
    two = likelihood([1 * math.log(2), 3 * math.log(8)], [1, 3])
    assert two.perplexity == pytest.approx(2 ** (10 / 4))


def test_a_fair_coin_a_byte_costs_one_bit_a_byte():
    assert likelihood([8 * math.log(2)], [2], [8]).bits_per_byte == pytest.approx(1)


def test_nats_are_summed_by_document_and_one_without_tokens_has_none():
    assert by_document(np.array([0, 2, 0]), np.array([-1.0, -2.0, -3.0]), 4).tolist() == [4, 0, 2, 0]


def test_halving_the_perplexity_is_a_gain_of_fifty_percent():
    base, other = likelihood([math.log(8)], [1]), likelihood([math.log(4)], [1])
    assert gain_percent(base, other) == pytest.approx(50)
    assert gain_percent(other, base) == pytest.approx(-100)


@given(documents)
def test_intervals_hold_the_point_and_are_the_same_every_time(drawn):
    rates, tokens, others = zip(*drawn, strict=True)
    base = likelihood(np.array(rates) * tokens, tokens)
    other = likelihood(np.array(others) * tokens, tokens)
    for measure, point in [
        (base.perplexity_interval, base.perplexity),
        (lambda: gain_interval(base, other), gain_percent(base, other)),
    ]:
        interval = measure()
        slack = 1e-9 * (1 + abs(point))
        assert interval.low - slack <= point <= interval.high + slack
        assert measure() == interval


def test_documents_that_are_alike_leave_no_doubt():
    interval = likelihood([2.0] * 5, [1] * 5).perplexity_interval()
    assert interval.low == pytest.approx(interval.high) == pytest.approx(math.e**2)


def test_the_interval_is_wider_the_fewer_the_documents():
    rates = np.random.default_rng(0).uniform(1, 3, 200)
    few = likelihood(rates[:10] * 100, [100] * 10).perplexity_interval()
    many = likelihood(rates * 100, [100] * 200).perplexity_interval()
    assert many.high - many.low < (few.high - few.low) / 2


def test_the_gain_is_paired_so_a_constant_gain_leaves_no_doubt():
    nats = np.array([1.0, 20.0, 300.0])
    interval = gain_interval(likelihood(nats, [10] * 3), likelihood(nats - 10 * math.log(2), [10] * 3))
    assert interval.low == pytest.approx(interval.high) == pytest.approx(50)


def test_one_document_gives_no_interval():
    one = likelihood([5.0], [2])
    assert one.perplexity_interval() is None
    assert gain_interval(one, one) is None
