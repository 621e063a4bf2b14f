"""Which documents are kept out to measure on."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnstore.holdout import MOST_TOKENS, choose_heldout, choose_more_heldout

documents = st.lists(st.integers(1, 1000), min_size=4, max_size=300)


def choose(tokens, share=0.01, **limits):
    return choose_heldout(np.array(tokens, np.int64), share, **limits).tolist()


@given(documents, st.floats(0.001, 0.5))
def test_whole_documents_are_held_out_a_share_of_them_and_at_least_two(tokens, share):
    heldout = choose(tokens, share)
    assert sum(count > 0 for count in heldout) == max(2, round(share * len(tokens)))
    assert all(count in (0, length) for count, length in zip(heldout, tokens, strict=True))


@given(documents, st.floats(0.001, 0.9), st.integers(1, 5000))
def test_no_more_tokens_are_held_out_than_told(tokens, share, most):
    assert sum(choose(tokens, share, most_tokens=most)) <= most


def test_a_document_too_long_to_be_held_out_is_passed_over():
    heldout = choose([10**9] * 50 + [1000] * 50, 0.1)
    assert sum(count > 0 for count in heldout) == 10
    assert heldout[:50] == [0] * 50


def test_a_corpus_of_three_documents_gives_the_last_tenth_of_each():
    assert choose([1000, 2000, 300]) == [100, 200, 30]


def test_a_larger_share_of_few_documents_gives_as_much_of_their_ends():
    assert choose([1000, 2000], 0.25) == [250, 500]


def test_ends_of_two_documents_are_held_out_where_no_two_whole_ones_fit():
    heldout = choose([MOST_TOKENS] * 5)
    assert sorted(heldout) == [0, 0, 0, MOST_TOKENS // 10, MOST_TOKENS // 10]


def test_the_ends_of_vast_documents_stay_within_the_limit():
    assert choose([10**9, 10**9]) == [MOST_TOKENS // 2] * 2


@pytest.mark.parametrize("tokens", [[1], [9], [1, 1, 1]])
def test_a_document_of_a_few_tokens_is_stored_whole(tokens):
    assert choose(tokens) == [0] * len(tokens)


@pytest.mark.parametrize("tokens", [[], [5], [5] * 100])
def test_a_share_of_nothing_holds_out_nothing(tokens):
    assert choose(tokens, 0) == [0] * len(tokens)


def test_an_empty_corpus_has_nothing_to_hold_out():
    assert choose([], 0.5) == []


@given(documents)
def test_the_choice_is_the_same_every_time(tokens):
    assert choose(tokens) == choose(tokens)


@given(documents, st.floats(0.001, 0.9), st.integers(1, 5000))
def test_the_choice_is_that_of_the_draw_where_nothing_is_repeated(tokens, share, most):
    nothing = {"repeats": np.zeros_like}
    assert choose(tokens, share, most_tokens=most, **nothing) == choose(tokens, share, most_tokens=most)
    lengths = np.array(tokens, np.int64)
    more = [choose_more_heldout(lengths, share, most, **options).tolist() for options in (nothing, {})]
    assert more[0] == more[1]


@given(documents, st.floats(0.001, 0.2), st.integers(0, 2**32))
def test_documents_that_others_repeat_are_held_out_only_where_the_sample_has_no_more_of_the_rest(tokens, share, seed):
    repeated = np.random.default_rng(seed).random(len(tokens)) < 0.5
    samples = []

    def repeats(documents):
        samples.append(documents.tolist())
        return np.array(tokens)[documents] * repeated[documents]

    heldout = np.flatnonzero(choose(tokens, share, repeats=repeats))
    wanted = max(2, round(share * len(tokens)))
    assert len(heldout) == wanted and len(samples) == 1
    assert samples[0] == sorted(set(samples[0])) and len(samples[0]) == min(4 * wanted, len(tokens))
    clean = [document for document in samples[0] if not repeated[document]]
    assert (~repeated[heldout]).sum() == min(wanted, len(clean))
