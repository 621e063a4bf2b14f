"""The longest suffix that occurs, against looking at every place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnstore.suffix_array.contexts import DEPTH, Packing, contexts_of, sorted_positions
from knnstore.suffix_array.search import FREQUENT, Suffixes

VOCABULARY = 5


def stream_of(documents, packing):
    parts = [part for document in documents for part in ([packing.separator], document)]
    return np.concatenate([np.array(part, packing.dtype) for part in parts])


def suffixes_of(documents, vocabulary=VOCABULARY):
    packing = Packing(vocabulary)
    stream = stream_of(documents, packing)
    positions = np.flatnonzero(stream != packing.separator)
    return Suffixes(stream, sorted_positions(stream, positions, packing), packing)


def by_looking(documents, context):
    """For each length the tokens that follow the context's last tokens anywhere: {length: [tokens]}."""
    found = {}
    for length in range(1, min(len(context), DEPTH) + 1):
        wanted = context[len(context) - length :]
        found[length] = [
            document[end]
            for document in documents
            for end in range(length, len(document))
            if document[end - length : end] == wanted
        ]
    return {length: tokens for length, tokens in found.items() if tokens}


documents = st.lists(st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=40), min_size=1, max_size=6)


@given(documents, st.lists(st.integers(0, VOCABULARY - 1), max_size=12), st.sampled_from([VOCABULARY, 2**17]))
def test_the_longest_and_the_longest_frequent_suffix_are_found_with_all_that_followed(stored, context, vocabulary):
    found = by_looking(stored, context)
    suffixes = suffixes_of(stored, vocabulary)
    ids = np.array([*context, 0])
    asked = contexts_of(ids, np.zeros(1, int), np.array([len(context)]), suffixes.packing.nothing)
    longest, frequent = suffixes.matches(asked)
    for matches, least in ((longest, 1), (frequent, FREQUENT)):
        lengths = [length for length, tokens in found.items() if len(tokens) >= least]
        length = max(lengths, default=0)
        followers = found.get(length, [])
        assert (matches.length[0], matches.count[0]) == (length, len(followers))
        assert sorted(matches.followers[0][matches.followers[0] >= 0]) == sorted(followers)[:64]
        for token in range(VOCABULARY):
            p = matches.probability(np.array([token]))[0]
            assert (np.isnan(p) and not followers) or p == pytest.approx(followers.count(token) / len(followers))


def test_a_match_never_reaches_into_the_document_before():
    suffixes = suffixes_of([[0, 1, 2], [3, 1, 4]])
    ids = np.array([0, 1, 2, 3, 9])
    asked = contexts_of(ids, np.zeros(1, int), np.array([4]), suffixes.packing.nothing)
    longest, _ = suffixes.matches(asked)
    assert (longest.length[0], longest.count[0]) == (1, 1)  # 3, but not 2 3


def test_what_is_longer_than_the_depth_counts_as_the_depth():
    text = np.random.default_rng(0).integers(0, VOCABULARY, 100).tolist()
    suffixes = suffixes_of([text])
    asked = contexts_of(np.array(text), np.zeros(1, int), np.array([90]), suffixes.packing.nothing)
    longest, _ = suffixes.matches(asked)
    assert (longest.length[0], longest.count[0]) == (DEPTH, 1)
    assert longest.followers[0, 0] == text[90]


def test_of_many_occurrences_a_fair_sample_is_looked_at():
    suffixes = suffixes_of([[0, 1] * 300 + [0, 2] * 300])
    longest, frequent = suffixes.matches(contexts_of(np.array([3, 0, 0]), np.zeros(1, int), np.array([2]), 6))
    assert (longest.length[0], longest.count[0]) == (1, 600)
    assert (frequent.length[0], frequent.count[0]) == (1, 600)
    assert (longest.followers[0] >= 0).all()
    assert longest.probability(np.array([1]))[0] == pytest.approx(0.5, abs=0.05)
