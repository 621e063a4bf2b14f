"""Rows to text, over several segments and within one document."""

from types import SimpleNamespace

import numpy as np
import pytest

from knnstore.passages import Passages


class Documents(list):
    def __init__(self, names, tokens):
        super().__init__(names)
        self.tokens = np.array(tokens)
        self.first_row = np.cumsum(self.tokens) - self.tokens

    def locate(self, rows):
        return np.searchsorted(self.first_row + self.tokens, rows, side="right")


def segment(names, tokens, first):
    rows = sum(tokens)
    values = np.arange(first, first + rows)
    return SimpleNamespace(documents=Documents(names, tokens), rows=rows, values=lambda begin, end: values[begin:end])


@pytest.fixture
def passages():
    segments = (segment(["a", "held out", "b"], [3, 0, 2], 0), segment(["c", "d"], [1, 4], 5))
    return Passages(SimpleNamespace(segments=segments), lambda tokens: " ".join(map(str, tokens)))


def test_every_row_is_found_in_its_document_over_all_segments(passages):
    numbers = passages.documents(np.arange(10).reshape(2, 5))
    assert numbers.tolist() == [[0, 0, 0, 2, 2], [3, 4, 4, 4, 4]]
    assert [passages.document(int(number)) for number in np.unique(numbers)] == ["a", "b", "c", "d"]


def test_a_passage_does_not_leave_its_document(passages):
    found = passages.at(7, before=9, after=9)
    assert (found.document, found.before, found.token, found.after) == ("d", "6", "7", "8 9")
    found = passages.at(4, before=9, after=9)
    assert (found.document, found.before, found.token, found.after) == ("b", "3", "4", "")
    assert passages.at(2, before=1).before == "1"


@pytest.mark.parametrize("row", [-1, 10])
def test_a_row_that_is_not_there_is_an_error(passages, row):
    with pytest.raises(IndexError, match=f"row {row} of a store with 10"):
        passages.at(row)
