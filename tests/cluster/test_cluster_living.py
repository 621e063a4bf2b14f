"""What changes a store, on a Dask cluster: the bytes are those of this process."""

import shutil

import pytest
from click.testing import CliRunner
from index_stores import clustered_keys, make_store

from knnstore.cli import main
from knnstore.datastore.store import Datastore
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.living.compact import CompactOptions, compact
from knnstore.living.deriving import merge, subset
from knnstore.living.remove import remove
from knnstore.scheduling import Job, cluster_runner

KEYS = clustered_keys(1640, 16)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """A folder with ``a``, three segments in an index of 24 lists, and ``b``, 300 other keys without one."""
    folder = tmp_path_factory.mktemp("living")
    segments = [KEYS[:700], KEYS[700:950], KEYS[950:1300]]
    options = {"document_rows": 50, "chunk_rows": 256, "key_dtype": "int8", "queries": KEYS[1600:]}
    digests = [bytes([number]) * 32 for number in range(1, 60)]
    store = make_store(folder / "a.knnstore", segments, **options, digests=digests)
    build_index(store, IndexOptions(nlist=24), Job())
    make_store(folder / "b.knnstore", [KEYS[1300:1600]], **options, digests=digests[50:])
    return folder


def changed(folder, job):
    """Every change that copies: merged and divided with the index, then compacted, with and without a removal."""
    one, other = (Datastore(folder / name) for name in ("a.knnstore", "b.knnstore"))
    merge([other, one], folder / "both.knnstore", job)
    subset(one, folder / "half.knnstore", job, share=0.5)
    one.close()
    shutil.copytree(one.root, folder / "clean.knnstore")
    compact(folder / "clean.knnstore", CompactOptions(), job)
    remove(one.root, ["100.txt"])
    compact(one.root, CompactOptions(), job)


def test_each_change_made_on_a_cluster_leaves_the_bytes_of_one_made_here(
    cluster, reference, tmp_path, monkeypatch, bytes_of
):
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        shutil.copytree(reference, folder)
    changed(here, Job())
    monkeypatch.chdir(there)  # paths that aren't absolute mean nothing to the workers
    with cluster_runner(cluster.address, patience=60) as runner:
        assert runner.workers >= 2
        changed(there.relative_to(there), Job(runner))
    for name in ("a", "both", "half", "clean"):
        assert bytes_of(there / f"{name}.knnstore") == bytes_of(here / f"{name}.knnstore"), name


def test_the_commands_join_a_cluster(cluster, reference, tmp_path, monkeypatch, bytes_of):
    shutil.copytree(reference, tmp_path / "w")
    remove(reference / "b.knnstore", ["0.txt"])
    compact(reference / "b.knnstore", CompactOptions(), Job())
    monkeypatch.chdir(tmp_path / "w")
    command = ["remove", "--store", "b", "--document", "0.txt", "--now"]
    done = CliRunner().invoke(main, [*command, "--scheduler-file", str(cluster.scheduler_file)])
    assert done.exit_code == 0, done.output
    assert f"workers at {cluster.address}" in done.stderr
    assert bytes_of(tmp_path / "w" / "b.knnstore") == bytes_of(reference / "b.knnstore")
