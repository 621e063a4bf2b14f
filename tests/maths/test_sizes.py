"""Sizes as people write them, and as refusals state them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnstore.errors import ResourceError, UsageError
from knnstore.ingestion.plan import IngestOptions, check_memory_first
from knnstore.scheduling import Job
from knnstore.sizes import format_need, format_size, parse_size


@given(st.integers(1, 10**17))
def test_a_need_as_it_is_printed_is_enough_and_hardly_more(count):
    printed = parse_size(format_need(count))
    assert count <= printed <= count * 1.0101 + 1


@given(st.text(max_size=20))
def test_any_text_is_a_size_within_bounds_or_refused(text):
    try:
        assert 1 <= parse_size(text) <= 2**60
    except UsageError as error:
        assert repr(text) in str(error)


@pytest.mark.parametrize("text", ["1e400", "1e30", "9" * 400, "2000PB"])
def test_a_size_that_no_machine_has_is_refused(text):
    with pytest.raises(UsageError, match="more than one exbibyte"):
        parse_size(text)


def test_the_memory_that_a_refusal_names_is_accepted():
    with pytest.raises(ResourceError, match=r"memory='1\.0 GB' is too little") as refused:
        check_memory_first(IngestOptions(corpus=("books/",)), Job(memory=10**9))
    need = re.search(r"needs at least (\S+ GB)", str(refused.value))
    assert need
    assert need[1] != format_size(10**9)
    check_memory_first(IngestOptions(corpus=("books/",)), Job(memory=parse_size(need[1])))
