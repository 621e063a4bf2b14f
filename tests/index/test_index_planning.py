"""Planning an index: arithmetic alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnstore.errors import ResourceError, UsageError
from knnstore.planning import (
    NATIVE_LOOKUP,
    REFERENCE_LOOKUP,
    BuildRates,
    IndexSize,
    choose_lookup,
    choose_nlist,
    choose_nprobe,
    choose_pq_bytes,
    choose_train_rows,
    forecast,
    plan_resources,
)


@pytest.mark.parametrize(
    ("rows", "nlist"), [(1, 1), (38, 1), (1000, 16), (10**6, 4096), (10**7, 16384), (10**9, 131072)]
)
def test_the_default_number_of_lists_grows_with_the_root_of_the_keys(rows, nlist):
    assert choose_nlist(rows, None) == (nlist, None)


def test_more_lists_than_the_keys_can_train_are_lowered_with_a_sentence():
    nlist, note = choose_nlist(10_000, 4096)
    assert nlist == 256
    assert "4,096" in note
    assert "256 lists" in note
    assert choose_nlist(200_000, 4096) == (4096, None)


@pytest.mark.parametrize("asked", [0, -1, 2**21])
def test_impossible_numbers_of_lists_are_refused(asked):
    with pytest.raises(UsageError, match="nlist="):
        choose_nlist(10**6, asked)


@given(st.integers(1, 5000))
def test_code_bytes_divide_the_dimension(dimension):
    pq_bytes = choose_pq_bytes(dimension, None)
    assert dimension % pq_bytes == 0
    assert 1 <= pq_bytes <= 64


def test_code_bytes_that_do_not_divide_name_those_near():
    assert choose_pq_bytes(256, None) == 64
    with pytest.raises(UsageError, match="60 doesn't divide the keys' 256 dimensions: give 32 or 64,"):
        choose_pq_bytes(256, 60)


def test_a_sample_too_small_for_its_lists_is_refused():
    assert choose_train_rows(10**6, 4096, None) == 163_840
    assert choose_train_rows(500, 12, None) == 500
    with pytest.raises(UsageError, match="train_sample=100"):
        choose_train_rows(10**6, 4096, 100)


def size_of(rows, dimension=64, chunk_rows=131_072):
    return IndexSize(rows, dimension, 2 * dimension, 2, 4, chunk_rows, -(-rows // chunk_rows))


def test_a_hundred_million_keys_fit_into_four_gigabytes_and_so_do_a_billion():
    for rows in (10**8, 10**9):
        nlist, _ = choose_nlist(rows, None)
        train_rows = choose_train_rows(rows, nlist, None)
        resources = plan_resources(
            size_of(rows), nlist=nlist, pq_bytes=16, train_rows=train_rows, memory=4 * 10**9, workers=2
        )
        assert resources.peak_bytes <= 4 * 10**9
        assert resources.disk_bytes == pytest.approx(rows * (128 + 16 + 2 + 4), rel=0.01)


@given(st.integers(1, 10**9), st.integers(10**8, 10**11), st.integers(0, 16))
def test_a_plan_keeps_to_its_memory_or_says_how_much_it_needs(rows, memory, workers):
    nlist, _ = choose_nlist(rows, None)
    options = {"nlist": nlist, "pq_bytes": 16, "train_rows": choose_train_rows(rows, nlist, None), "workers": workers}
    try:
        resources = plan_resources(size_of(rows), memory=memory, **options)
    except ResourceError as error:
        assert "need" in str(error)
        return
    assert resources.peak_bytes <= memory
    assert resources.run_chunks >= 1


def test_short_lists_are_probed_more_of_so_that_the_candidates_suffice():
    assert choose_nprobe(6_000_000, 4096, None) == 32
    assert choose_nprobe(24_000, 600, None) == 205  # 40 keys a list
    assert choose_nprobe(100, 10, None) == 10
    assert choose_nprobe(24_000, 600, 8) == 8
    with pytest.raises(UsageError, match="nprobe=0"):
        choose_nprobe(100, 10, 0)


# Medians of one query on one core, in ms: exact distances of all keys, and by way of the codes.
MEASURED = [
    (NATIVE_LOOKUP, 75_000, 64, 16, 8, 1.06, 19.6),
    (NATIVE_LOOKUP, 75_000, 64, 16, 1024, 1.12, 19.1),
    (NATIVE_LOOKUP, 18_750, 256, 64, 8, 0.67, 8.86),
    (NATIVE_LOOKUP, 18_750, 256, 64, 64, 0.64, 8.63),
    (NATIVE_LOOKUP, 18_750, 256, 64, 1024, 0.69, 10.7),
    (NATIVE_LOOKUP, 20_000, 2048, 64, 8, 5.10, 10.5),
    (NATIVE_LOOKUP, 20_000, 2048, 64, 1024, 5.20, 41.1),
    (REFERENCE_LOOKUP, 75_000, 256, 64, 8, 18.9, 47.9),
    (REFERENCE_LOOKUP, 75_000, 256, 64, 1024, 18.7, 45.8),
    (REFERENCE_LOOKUP, 20_000, 2048, 64, 64, 44.7, 11.3),
    (REFERENCE_LOOKUP, 5_000, 2048, 64, 1024, 23.1, 40.3),
    (REFERENCE_LOOKUP, 40_000, 2048, 64, 1024, 77.3, 59.6),
]


@pytest.mark.parametrize("case", MEASURED)
def test_the_way_that_was_measured_to_be_faster_is_chosen(case):
    rates, keys, dimension, pq_bytes, k, exact, coded = case
    way = choose_lookup(keys, dimension=dimension, key_bytes=dimension, pq_bytes=pq_bytes, k=k, rates=rates, cold=0.0)
    assert (way.rerank == 0) == (exact < coded)
    measured = min(exact, coded) / 1000
    assert measured / 2.5 < way.seconds < 2.5 * measured


def test_codes_are_read_where_memory_cannot_hold_wide_keys_unless_many_neighbours_are_wanted():
    about = {"dimension": 2048, "key_bytes": 2048, "pq_bytes": 64, "rates": NATIVE_LOOKUP}
    assert choose_lookup(50_000, k=64, cold=0.0, **about).rerank == 0
    way = choose_lookup(50_000, k=64, cold=0.9, **about)
    assert way.rerank > 0
    assert way.bytes == 50_000 * 64 + way.rerank * 64 * 2048
    assert choose_lookup(50_000, k=8192, cold=0.9, **about).rerank == 0


def test_a_forecast_shares_the_arithmetic_of_fill_and_merge_among_the_workers_there_are_cores_for():
    rates = BuildRates(start=4, train=10, fill=6e-6, merge=2e-6, cpu=7e-6, check=1e-6, check_once=0.5)
    alone = forecast(rates, 10**6, trains=True, workers=0, cores=4)
    assert alone.total == pytest.approx(4 + 10 + 6 + 2 + 1.5)
    shared = forecast(rates, 10**6, trains=False, workers=8, cores=4)
    assert shared.fill + shared.merge == pytest.approx(7 / 4 + 1)  # the disk isn't shared out
    assert shared.train == 0
