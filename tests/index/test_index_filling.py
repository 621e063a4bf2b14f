"""Filling: rows are in one order, a cut through a list finds its place."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from knnstore.datastore.arrays import create_array, write_chunk, write_raw_chunks
from knnstore.indexes.hashing import shuffle_key
from knnstore.indexes.ivfpq.cuts import cut_list
from knnstore.indexes.ivfpq.fill import list_order
from knnstore.indexes.ivfpq.quantiser import Quantiser, train_codebooks


def test_of_no_keys_there_are_no_errors():
    """As of a short chunk of keys in list order, none of whose rows is one that is measured."""
    keys, none = np.random.default_rng(0).standard_normal((600, 16), np.float32), np.empty((0, 16), np.float32)
    quantiser = Quantiser(keys[:6], keys[:30], train_codebooks(keys, 4, 0))
    lists = quantiser.assign(none)
    assert quantiser.errors(none, lists, quantiser.encode(none, lists)).shape == (0,)


@given(st.data())
def test_rows_are_ordered_by_list_and_then_by_their_hash(data):
    count = data.draw(st.integers(0, 60))
    rows = np.array(data.draw(st.permutations(range(count))), np.uint32)
    lists = np.array(data.draw(st.lists(st.integers(5, 5 + 2**20), min_size=count, max_size=count)), np.int64)
    expected = np.lexsort((shuffle_key(rows.astype(np.uint64), 3), lists))
    np.testing.assert_array_equal(list_order(rows, lists, 3), expected)


def test_the_order_is_right_where_two_hashes_differ_in_their_last_bits_alone(monkeypatch):
    monkeypatch.setattr("knnstore.indexes.ivfpq.fill.shuffle_key", lambda rows, seed: 2**63 + rows)
    rows, lists = np.array([3, 1, 2, 0], np.uint32), np.array([70, 70, 0, 70])
    np.testing.assert_array_equal(list_order(rows, lists, 0), [2, 3, 1, 0])


@given(
    lengths=st.lists(st.integers(0, 300), min_size=1, max_size=8),
    share=st.floats(0, 1),
    even=st.booleans(),
    seed=st.integers(0, 99),
)
def test_a_cut_leaves_so_many_of_the_smallest_hashes_before_it(lengths, share, even, seed):
    """Evenly spread hashes, as they are, and all small ones in one run, as they never are."""
    generator = np.random.default_rng(seed)
    hashes = np.unique(generator.integers(2**64, size=2 * sum(lengths) + 1, dtype=np.uint64))[: sum(lengths)]
    if even:
        generator.shuffle(hashes)
    ends = np.cumsum(lengths)
    runs = [np.sort(hashes[end - length : end]) for end, length in zip(ends, lengths, strict=True)]
    begins = generator.integers(50, size=len(lengths))
    rank = round(share * sum(lengths))
    cuts = cut_list(begins, begins + lengths, rank, lambda run, a, b: runs[run][a - begins[run] : b - begins[run]])
    before = [run[: cut - begin] for run, cut, begin in zip(runs, cuts, begins, strict=True)]
    np.testing.assert_array_equal(np.sort(np.concatenate(before)), np.sort(hashes)[:rank])


def test_of_a_long_list_a_cut_reads_a_few_rows():
    run = np.sort(np.random.default_rng(0).integers(2**64, size=2**20, dtype=np.uint64))
    read = []

    def hashes(_, begin, end):
        read.append(end - begin)
        return run[begin:end]

    assert cut_list(np.array([0]), np.array([len(run)]), 700_000, hashes).tolist() == [700_000]
    assert sum(read) < 20_000


@pytest.mark.parametrize("chunk", [0, 1])
def test_raw_chunks_are_the_bytes_that_zarr_writes(tmp_path, chunk):
    blocks = {"a": np.arange(40, dtype=np.int8).reshape(10, 4), "b": np.arange(10, dtype=np.uint32)}
    for name, whole in blocks.items():
        create_array(tmp_path / name, whole.shape, 6, whole.dtype, "none")
    part = slice(6 * chunk, 6 * chunk + 6)
    expected = {name: write_chunk(tmp_path / name, chunk, whole[part]).read_bytes() for name, whole in blocks.items()}
    files = write_raw_chunks(chunk, {tmp_path / name: whole[part] for name, whole in blocks.items()})
    assert [file.read_bytes() for file in files] == list(expected.values())
    with pytest.raises(ValueError, match="chunk 1 given"):
        write_raw_chunks(1, {tmp_path / "a": blocks["a"][:5]})
