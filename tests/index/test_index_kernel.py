"""The compiled kernel is built once, safely, and its absence costs nothing but time."""

import shutil
import stat
import subprocess
import sys
import warnings

import numpy as np
import pytest
from index_stores import clustered_keys, make_store

import knnstore.indexes.compute.kernel as kernel_module
from knnstore.datastore.store import Datastore
from knnstore.indexes.compute.choice import host_engine
from knnstore.indexes.compute.kernel import KernelWarning, load_kernel
from knnstore.indexes.compute.native import NativeEngine
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.scheduling import Job

compiled = pytest.mark.skipif(load_kernel() is None, reason="there is no C compiler, or the kernel is switched off")


@pytest.fixture
def fresh(tmp_path, monkeypatch):
    """A process that has no kernel yet, and an empty cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("KNNSTORE_KERNEL", raising=False)
    host_engine.cache_clear()
    yield tmp_path / "cache" / "knnstore"
    host_engine.cache_clear()


@compiled
@pytest.mark.parametrize("key_dtype", ["int8", "float16"])
def test_a_search_finds_the_same_with_and_without_the_kernel(tmp_path, switch_kernel_off, key_dtype):
    keys = clustered_keys(6060, 24)
    store = make_store(tmp_path / "s", [keys[:5000], keys[5000:6000]], key_dtype=key_dtype)
    build_index(store, IndexOptions(nlist=8), Job())
    queries = keys[6000:]

    def searched():
        searcher = Searcher(Datastore(store.root))
        return [searcher.search(queries, 100, 6, method=way, rows=True) for way in ("lists", "quantised", "exact")]

    ours = searched()
    switch_kernel_off()
    reference = searched()
    for number, (one, other) in enumerate(zip(ours, reference, strict=True)):
        if key_dtype == "int8" and number != 1:  # codes are compared as floats
            np.testing.assert_array_equal(one.distances, other.distances)
            np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_allclose(one.distances, other.distances, rtol=2e-4, atol=1e-3)
        shared = [len(np.intersect1d(a, b)) for a, b in zip(one.rows, other.rows, strict=True)]
        assert np.mean(shared) > 99.8


@compiled
def test_the_kernel_is_built_once_and_kept_for_its_user_alone(fresh):
    assert load_kernel() is not None
    (built,) = fresh.iterdir()
    assert stat.S_IMODE(fresh.stat().st_mode) == 0o700
    before = built.stat()
    assert load_kernel() is not None
    assert built.stat().st_mtime_ns == before.st_mtime_ns


@compiled
def test_processes_that_build_it_at_once_do_not_meet(fresh):
    code = "from knnstore.indexes.compute.kernel import load_kernel; print(load_kernel().checksums())"
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
    code = "from knnstore.indexes.compute.kernel import load_kernel; assert load_kernel() is not None"
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
        assert not isinstance(host_engine(), NativeEngine)
        assert not isinstance(host_engine(), NativeEngine)
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
