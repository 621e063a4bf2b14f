"""The compiled kernel finds what the reference finds, and its absence costs nothing but time."""

import shutil
import stat
import subprocess
import sys
import warnings

import google_crc32c
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from index_stores import clustered_keys, make_store

import knnstore.index.kernel as kernel_module
from knnstore.build import IndexOptions, build_index
from knnstore.datastore.block_sums import first_damaged
from knnstore.datastore.store import Datastore
from knnstore.index.compiled import PIECE, CompiledNearest, damaged_block, smallest
from knnstore.index.grouping import members_of_lists
from knnstore.index.kernel import KernelWarning, load_kernel
from knnstore.index.nearest import Nearest
from knnstore.index.search import Searcher
from knnstore.progress import Reporter
from knnstore.scheduling import SerialRunner

compiled = pytest.mark.skipif(load_kernel() is None, reason="there is no C compiler, or the kernel is switched off")
integers = pytest.mark.skipif(
    load_kernel() is None or not load_kernel().int8_products(), reason="the processor has no AVX-512 VNNI"
)


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A process that has no kernel yet, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KNNSTORE_KERNEL", raising=False)
    load_kernel.cache_clear()
    yield tmp_path / "cache" / "knnstore"
    load_kernel.cache_clear()


def offers(data, queries, rounds, *, distinct):
    generator = np.random.default_rng(data)
    for number in range(rounds):
        members = np.flatnonzero(generator.random(queries) < 0.7)
        count = int(generator.integers(1, 60))
        scores = generator.integers(-distinct, distinct, (len(members), count)).astype(np.float32) / 8
        values = generator.integers(0, 2**16, count).astype(np.uint16)
        yield members, scores, generator.random(len(members), np.float32) * 3, values, np.arange(count) + 1000 * number


@compiled
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 700), st.sampled_from([3, 1000]), st.booleans(), st.booleans())
def test_the_kernel_keeps_the_very_bits_that_numpy_keeps(seed, k, distinct, tags, limited):
    thresholds = np.full(5, 20 if limited else np.inf, np.float32)
    reference, ours = Nearest(thresholds, k, tags=tags), CompiledNearest(load_kernel(), thresholds, k, tags=tags)
    for offer in offers(seed, 5, 60, distinct=distinct):
        arguments = offer if tags else (*offer[:4], None)
        reference.offer(*arguments)
        ours.offer(*arguments)
    one, other = reference.neighbours(), ours.neighbours()
    np.testing.assert_array_equal(one.distances.view(np.uint32), other.distances.view(np.uint32))
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(reference.found(), ours.found())
    if tags:
        np.testing.assert_array_equal(one.rows, other.rows)
    else:
        assert other.rows is None


@compiled
@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32), st.integers(0, 3000), st.integers(1, 1200), st.sampled_from([2, 50, 10**6]))
def test_the_smallest_are_those_of_numpy_ties_in_order(seed, count, k, distinct):
    generator = np.random.default_rng(seed)
    distances = (generator.integers(0, distinct, count) / 7).astype(np.float32)
    distances[generator.random(count) < 0.1] = np.inf
    expected = np.argsort(distances, kind="stable")[:k]
    np.testing.assert_array_equal(smallest(distances, k), expected[np.isfinite(distances[expected])])


@integers
@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 130), st.integers(1, 100), st.sampled_from([0.0, 30.0]))
def test_products_of_integers_are_distances_to_a_ten_thousandth(seed, dimension, keys, mean):
    generator = np.random.default_rng(seed)
    units = generator.integers(-127, 128, (keys, dimension), dtype=np.int8)
    scales = generator.uniform(0.01, 0.1, dimension).astype(np.float32)
    vectors = units * scales.astype(np.float64)
    centroid = (vectors.mean(axis=0) + mean).astype(np.float32)
    queries = np.ascontiguousarray(generator.normal(0, 3, (9, dimension)) + mean, np.float32)
    members = np.array([0, 1, 2, 4, 5, 7, 8])
    nearest = CompiledNearest(load_kernel(), np.full(9, np.inf, np.float32), keys, tags=True)
    places = np.arange(keys)
    nearest.offer_units(queries, members, units, scales, centroid, values=places, tags=places + 5)
    found = nearest.neighbours()
    assert (found.values[[3, 6]] == -1).all()
    squared = ((queries[members, None].astype(np.float64) - vectors) ** 2).sum(-1)
    # the query's rounding, 2^-16 of its largest weight, times what keys differ from the centroid
    far = ((vectors - centroid) ** 2).sum(-1).max() + ((queries - centroid) ** 2).sum(-1).max()
    by_distance = np.take_along_axis(squared, found.values[members], 1)
    np.testing.assert_allclose(found.distances[members], by_distance, rtol=1e-4, atol=1e-4 * far)
    assert (np.sort(found.values[members], axis=1) == places).all()
    assert (found.rows[members] == found.values[members] + 5).all()


@integers
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([3, 1500]), st.lists(st.integers(1, 1500), min_size=1, max_size=5))
def test_many_lists_in_one_call_are_what_they_are_one_by_one(seed, queries, sizes):
    generator, nlist, dimension, k = np.random.default_rng(seed), 3, 20, 40
    centroids = generator.normal(size=(nlist, dimension)).astype(np.float32)
    asked = generator.normal(size=(queries, dimension)).astype(np.float32)
    scales = generator.uniform(0.01, 0.1, dimension).astype(np.float32)
    numbers = np.sort(generator.integers(0, nlist, len(sizes)))
    members, bounds = members_of_lists(np.argsort(generator.random((queries, nlist)))[:, :2], nlist)
    together, apart = (
        CompiledNearest(load_kernel(), np.full(queries, np.inf, np.float32), k, tags=True) for _ in range(2)
    )
    held, pieces = [], np.zeros(len(sizes), PIECE)
    for piece, number, size in zip(pieces, numbers, sizes, strict=True):
        units = generator.integers(-127, 128, (size, dimension), dtype=np.int8)
        values, rows = generator.integers(0, 9999, size, np.uint16), np.arange(size, dtype=np.uint32)
        hidden = generator.random(size) < 0.2
        held.append((units, values, rows, hidden))
        for name, array in zip(("units", "values", "rows", "hidden"), held[-1], strict=True):
            piece[name] = array.ctypes.data
        piece["scales"], piece["count"], piece["list"] = scales.ctypes.data, size, number
        piece["first_row"], piece["value_bytes"], piece["row_bytes"] = 70, 2, 4
        asking = members[bounds[number] : bounds[number + 1]]
        apart.offer_units(
            asked, asking, units[~hidden], scales, centroids[number], values=values[~hidden], tags=rows[~hidden] + 70
        )
    together.offer_lists(pieces, centroids, asked, members, bounds)
    one, other = together.neighbours(), apart.neighbours()
    np.testing.assert_array_equal(one.distances.view(np.uint32), other.distances.view(np.uint32))
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.rows, other.rows)


@compiled
@pytest.mark.parametrize("key_dtype", ["int8", "float16"])
def test_a_search_finds_the_same_with_and_without_the_kernel(tmp_path, monkeypatch, key_dtype):
    keys = clustered_keys(6060, 24)
    store = make_store(tmp_path / "s", [keys[:5000], keys[5000:6000]], key_dtype=key_dtype)
    build_index(store, IndexOptions(nlist=8), SerialRunner(), Reporter())
    searcher, queries = Searcher(Datastore(store.root)), keys[6000:]
    methods = ("lists", "quantised", "exact")
    ours = [searcher.search(queries, 100, 6, method=method, rows=True) for method in methods]
    monkeypatch.setattr("knnstore.index.selection.load_kernel", lambda: None)
    reference = [searcher.search(queries, 100, 6, method=method, rows=True) for method in methods]
    for one, other in zip(ours, reference, strict=True):
        np.testing.assert_allclose(one.distances, other.distances, rtol=2e-4, atol=1e-3)
        shared = [len(np.intersect1d(a, b)) for a, b in zip(one.rows, other.rows, strict=True)]
        assert np.mean(shared) > 99.8


@compiled
def test_the_kernel_is_built_once_and_kept_for_its_user_alone(fresh):
    assert load_kernel() is not None
    (built,) = fresh.iterdir()
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o700
    load_kernel.cache_clear()
    before = built.stat()
    assert load_kernel() is not None
    assert built.stat().st_mtime_ns == before.st_mtime_ns


@compiled
def test_processes_that_build_it_at_once_do_not_meet(fresh):
    code = "from knnstore.index.kernel import load_kernel; print(load_kernel().int8_products())"
    several = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert {process.communicate(timeout=120)[0].strip() for process in several} <= {"0", "1"}
    assert all(process.returncode == 0 for process in several)
    assert [path.suffix for path in fresh.iterdir()] == [".so"]


@compiled
def test_a_damaged_kernel_is_built_again(fresh):
    load_kernel()
    (built,) = fresh.iterdir()
    built.unlink()
    built.write_bytes(b"cut short")
    built.chmod(0o700)
    # in another process: the loader takes a path that it knows for the library that it has
    code = "from knnstore.index.kernel import load_kernel; assert load_kernel() is not None"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    assert built.stat().st_size > 1000


@compiled
def test_what_others_could_have_written_is_not_loaded(fresh):
    fresh.mkdir(parents=True)
    fresh.chmod(0o777)
    assert load_kernel() is not None
    assert list(fresh.iterdir()) == []


def test_a_compiler_that_fails_is_told_once_and_the_search_goes_on(fresh, monkeypatch):
    monkeypatch.setenv("CC", shutil.which("false") or "/bin/false")
    with pytest.warns(KernelWarning, match="KNNSTORE_KERNEL=off") as told:
        assert load_kernel() is None
        assert load_kernel() is None
    assert len(told) == 1
    assert list(fresh.iterdir()) == []


@pytest.mark.parametrize("why", ["no compiler", "switched off"])
def test_without_a_compiler_there_is_no_kernel_and_not_a_word(fresh, monkeypatch, why):
    if why == "switched off":
        monkeypatch.setenv("KNNSTORE_KERNEL", "off")
    else:
        monkeypatch.delenv("CC", raising=False)
        monkeypatch.setattr(kernel_module.shutil, "which", lambda name: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_kernel() is None
    assert not fresh.exists()


@compiled
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 200)), min_size=1, max_size=6), st.data())
def test_checksums_of_blocks_are_the_librarys_and_find_a_changed_byte(blocks, data):
    if not load_kernel().checksums():
        pytest.skip("this processor has no instruction for CRC-32C")
    held = np.random.default_rng(0).integers(0, 256, 700, np.uint8)
    begins, sizes = (np.array(column) for column in zip(*blocks, strict=True))
    sums = np.array([google_crc32c.value(held[b : b + n].tobytes()) for b, n in blocks], np.uint32)
    assert damaged_block(held, begins, sizes, sums) is None
    changed = data.draw(st.integers(0, len(blocks) - 1))
    held[begins[changed] + data.draw(st.integers(0, int(sizes[changed]) - 1))] ^= 1
    found = damaged_block(held, begins, sizes, sums)
    assert found is not None
    assert found == first_damaged(held, begins, sizes, sums) <= changed
