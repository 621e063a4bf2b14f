"""Windows: every token is predicted once, with enough context, whatever the documents' lengths and the chunks' grid."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnstore.windows import cut_windows

lengths = st.lists(st.integers(0, 60), min_size=1, max_size=6)


@st.composite
def sizes(draw):
    context = draw(st.integers(1, 20))
    return context, draw(st.integers(1, context))


def cut(tokens, size, rows=None):
    tokens = np.array(tokens, np.int64)
    return cut_windows(np.cumsum(tokens) - tokens, tokens, context=size[0], stride=size[1], rows=rows)


def as_tuples(windows):
    columns = (windows.document, windows.start, windows.length, windows.scored, windows.row)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def transcription(tokens, size):
    """The definition word for word: a window holds W positions and scores its last S, and slides by S."""
    context, stride = size
    windows, first_row = [], 0
    for document, count in enumerate(tokens):
        stream = range(count + 1)  # BOS, then the tokens; the last token is predicted but never read
        for i in range(0, count, stride):
            fed = stream[max(i + stride - context, 0) : min(i + stride, count)]
            windows.append((document, fed[0], len(fed), fed[-1] + 1 - i, first_row + i))
        first_row += count
    return windows


@given(lengths, sizes())
def test_windows_are_those_of_the_definition(tokens, size):
    assert as_tuples(cut(tokens, size)) == transcription(tokens, size)


@given(lengths, sizes())
def test_every_row_is_scored_exactly_once(tokens, size):
    windows = cut(tokens, size)
    scored = [row for _, _, _, count, first in as_tuples(windows) for row in range(first, first + count)]
    assert scored == list(range(sum(tokens)))


@given(lengths, sizes())
def test_every_token_but_a_documents_first_ones_sees_the_context_that_was_promised(tokens, size):
    context, stride = size
    for _, start, length, scored, _ in as_tuples(cut(tokens, size)):
        assert length <= context
        assert start == 0 or length - scored == context - stride  # what the first scored position has before it


@given(lengths, sizes(), st.data())
def test_a_range_of_rows_gives_exactly_the_windows_that_overlap_it(tokens, size, data):
    total = sum(tokens)
    begin = data.draw(st.integers(0, total))
    end = data.draw(st.integers(begin, total))
    overlapping = [w for w in transcription(tokens, size) if max(begin, w[4]) < min(end, w[4] + w[3])]
    assert as_tuples(cut(tokens, size, (begin, end))) == overlapping


@given(lengths, sizes(), st.integers(1, 50), st.integers(1, 50))
def test_a_rows_window_does_not_depend_on_the_grid_of_chunks(tokens, size, chunk_rows, other):
    def window_of_each_row(rows):
        found = {}
        for begin in range(0, sum(tokens), rows):
            end = min(begin + rows, sum(tokens))
            for window in as_tuples(cut(tokens, size, (begin, end))):
                mine = range(max(begin, window[4]), min(end, window[4] + window[3]))
                found |= dict.fromkeys(mine, window)
        return found

    assert window_of_each_row(chunk_rows) == window_of_each_row(other)


@given(lengths, sizes(), st.integers(1, 100))
def test_batches_hold_every_window_once_and_no_more_tokens_than_told(tokens, size, batch_tokens):
    windows = cut(tokens, size)
    batches = list(windows.batches(batch_tokens))
    assert sorted(window for batch in batches for window in as_tuples(batch)) == sorted(as_tuples(windows))
    assert all(len(batch) == 1 or len(batch) * int(batch.length.max()) <= batch_tokens for batch in batches)
    assert [as_tuples(batch) for batch in windows.batches(batch_tokens)] == [as_tuples(batch) for batch in batches]


@pytest.mark.parametrize(("context", "stride"), [(4, 5), (4, 0), (4, -1)])
def test_a_stride_that_would_leave_tokens_out_is_refused(context, stride):
    with pytest.raises(ValueError, match=f"stride {stride} is not between 1 and the context {context}"):
        cut([10], (context, stride))
