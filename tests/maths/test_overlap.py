"""Runs of tokens that two texts share, against the definition: every window compared with every other."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnstore import overlap
from knnstore.overlap import LENGTH, Shingles, covered, window_starts

# few tokens and long repeats, so that windows coincide, overlap themselves and differ in a single token
pieces = st.lists(st.integers(0, 5), min_size=1, max_size=12)


def woven(draws, length):
    """A text of ``length`` tokens out of some pieces, each repeated for a while."""
    runs = [np.resize(np.array(piece), 40 + 13 * len(piece)) for piece in draws]
    return np.resize(np.concatenate(runs), length).astype(np.uint16)


def positions(windows, ids):
    return [
        (int(place), int(group))
        for places, groups in windows.find(ids)
        for place, group in zip(places, groups, strict=True)
    ]


@given(st.lists(pieces, min_size=1, max_size=5), st.lists(pieces, min_size=1, max_size=5), st.integers(1, 300))
def test_every_window_that_both_texts_have_is_found_once_and_no_other(one, other, cut):
    text, stored = woven(one, 400), woven([*other, *one[:1]], 500)
    first, tokens = np.array([0, cut]), np.array([cut, len(text) - cut])
    starts = window_starts(first, tokens, 0, len(text))
    assert starts.tolist() == [s for s in range(len(text)) if s + LENGTH <= (cut if s < cut else len(text))]
    windows = Shingles(text, starts)
    known = {bytes(text[s : s + LENGTH]): int(g) for s, g in zip(starts, windows.group, strict=True)}
    assert windows.groups == len(known)
    expected = [
        (place, known[bytes(stored[place : place + LENGTH])])
        for place in range(len(stored) - LENGTH + 1)
        if bytes(stored[place : place + LENGTH]) in known
    ]
    assert positions(windows, stored) == expected


def test_blocks_meet_without_a_gap(monkeypatch):
    ids = np.random.default_rng(0).integers(0, 3, 700).astype(np.uint32)
    starts = window_starts(np.array([0]), np.array([700]), 0, 700)
    whole = positions(Shingles(ids, starts), ids)
    monkeypatch.setattr(overlap, "_BLOCK", 64)
    overlap._powers.cache_clear()
    assert positions(Shingles(ids, starts), ids) == whole
    overlap._powers.cache_clear()
    assert [place for place, _ in whole] == starts.tolist()


def test_equal_hashes_of_other_tokens_are_no_overlap(monkeypatch):
    ids = np.arange(200, dtype=np.uint32)
    windows = Shingles(ids, np.arange(100))
    hashed = overlap._hashed
    monkeypatch.setattr(overlap, "_hashed", lambda _: hashed(ids))  # whatever is looked up has the text's hashes
    assert positions(windows, ids[::-1].copy()) == []


@pytest.mark.parametrize("length", [0, 1, LENGTH - 1])
def test_a_text_shorter_than_a_window_has_none(length):
    ids = np.zeros(length, np.uint32)
    windows = Shingles(ids, window_starts(np.array([0]), np.array([length]), 0, length))
    assert (windows.groups, positions(windows, np.zeros(100, np.uint32))) == (0, [])


def test_what_windows_cover_is_counted_once():
    inside = covered(np.array([0, 10, 200]), 300)
    assert np.flatnonzero(inside).tolist() == [*range(60), *range(200, 250)]
