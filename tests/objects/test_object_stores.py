"""A store in a bucket: the bytes of one on a disk, whatever the service and the machine do meanwhile."""

import json
import shutil
import sys
import threading
import time
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from killing import kill_when
from s3_servers import BUCKET, SECRET, copied, objects_of

from knnstore.cli.commands import main
from knnstore.datastore.layout import segment_root
from knnstore.datastore.manifest import load_manifest
from knnstore.datastore.segment import Segment
from knnstore.datastore.store import Datastore
from knnstore.errors import CorruptStoreError
from knnstore.files import RemotePath
from knnstore.indexes.ivfpq.search import Searcher
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.indexing.plan import dry_run
from knnstore.ingestion.job import ingest
from knnstore.ingestion.plan import IngestOptions
from knnstore.living.compact import CompactOptions, compact
from knnstore.living.remove import remove
from knnstore.scheduling import Job, cluster_runner
from knnstore.scoring.job import score
from knnstore.scoring.options import ScoreOptions
from knnstore.verification.check import verify

sys.path.insert(0, str(Path(__file__).parents[1] / "cluster"))

from loopback import MOST_SECONDS, LoopbackCluster

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("made_by_a_small_lm")]

CHUNK_ROWS, CONTEXT = 512, 128
INDEX = IndexOptions(nlist=32, pq_bytes=8)


def options(**others):
    return IngestOptions(corpus=("books/",), chunk_rows=CHUNK_ROWS, context=CONTEXT, **others)


def scores(root):
    return score(ScoreOptions(k=100), Datastore(root)).to_json()


scores_of_disk = lru_cache(scores)


@pytest.fixture
def here(small_reference, monkeypatch):
    """The folder with ``books/``, to work in."""
    monkeypatch.chdir(small_reference)
    return small_reference


def contents(client, root):
    found = objects_of(client, root.key)
    return {name: data for name, data in found.items() if name != ".lock" and "log/" not in name}


def test_a_store_in_a_bucket_has_the_bytes_of_one_on_a_disk_through_500s_broken_and_slow_answers(
    here, url, s3, client, bytes_of
):
    s3.faults.broken, s3.faults.cut, s3.faults.slow, s3.faults.lost = 53, 59, 61, 67
    s3.faults.pause = 0.02
    root = RemotePath(f"{url}.knnstore")
    report = ingest(options(store=str(root)), Job())
    assert dry_run(Datastore(root), INDEX, Job()).nlist == INDEX.nlist
    build_index(Datastore(root), INDEX, Job())
    expected = bytes_of(here / "books.knnstore")
    assert contents(client, root) == expected
    assert report.store == root
    assert report.bytes == sum(len(data) for name, data in expected.items() if name.startswith("segments/"))
    there, local = scores(root), scores_of_disk(here / "books.knnstore")
    for name in ("base", "knn", "tokens", "search"):
        assert there[name] == local[name], name
    assert all(s3.struck[kind] >= 5 for kind in ("broken", "cut", "slow", "lost"))
    # and once more, all well: what was read is here, and next to nothing passes
    s3.faults = type(s3.faults)()
    s3.forget()
    assert scores(root)["knn"] == local["knn"]
    assert s3.requests.total() < 100
    assert s3.received < 100_000
    assert not any(SECRET.encode() in data for data in objects_of(client, root.key).values())


def test_zarr_itself_reads_the_arrays(here, url, s3, client):
    import zarr
    from obstore.store import from_url

    root = RemotePath(f"{url}.knnstore")
    copied(client, here / "books.knnstore", root.key)
    store = zarr.storage.ObjectStore(
        from_url(f"{root}/segments/0000", endpoint=s3.url, client_options={"allow_http": True}), read_only=True
    )
    segment = Segment(segment_root(here / "books.knnstore", "0000"))
    group = zarr.open_group(store, mode="r")
    np.testing.assert_array_equal(group["keys"][:], segment.keys(0, segment.rows))
    np.testing.assert_array_equal(group["values"][:], segment.values(0, segment.rows))


def test_a_store_that_was_copied_to_a_bucket_is_searched_verified_and_its_damage_found(here, url, s3, client):
    root = RemotePath(f"{url}.knnstore")
    copied(client, here / "books.knnstore", root.key)
    queries = Segment(segment_root(here / "books.knnstore", "0000")).queries()[:50]
    local = Searcher(Datastore(here / "books.knnstore")).search(queries, 20, rows=True)
    there = Searcher(Datastore(root)).search(queries, 20, rows=True)
    np.testing.assert_array_equal(there.rows, local.rows)
    np.testing.assert_array_equal(there.distances, local.distances)
    for query in queries[:3]:  # looked up, not joined
        one = Searcher(Datastore(root)).search(query[None], 20, rows=True)
        np.testing.assert_array_equal(
            one.rows, Searcher(Datastore(here / "books.knnstore")).search(query[None], 20, rows=True).rows
        )
    assert verify(root).damages == ()
    name = next(path.relative_to(root).as_posix() for path in root.rglob("0") if "/keys/c/0/0" in str(path))
    body = bytearray(client.get_object(Bucket=BUCKET, Key=f"{root.key}/{name}")["Body"].read())
    body[100] ^= 1
    client.put_object(Bucket=BUCKET, Key=f"{root.key}/{name}", Body=bytes(body))
    assert [damage.path for damage in verify(root).damages] == [name]
    with pytest.raises(CorruptStoreError, match="damaged"):
        Searcher(Datastore(root)).search(queries, 20)


def test_an_index_that_is_interrupted_goes_on_with_the_tasks_that_are_left(
    here, url, client, counting_runner, bytes_of
):
    root = RemotePath(f"{url}.knnstore")
    copied(client, here / "keys.knnstore", root.key)
    with pytest.raises(InterruptedError):
        build_index(Datastore(root), INDEX, Job(counting_runner(most=4)))
    resumed = counting_runner()
    build_index(Datastore(root), INDEX, Job(resumed))
    assert resumed.ran["fill_run"] == 0
    assert resumed.ran["merge_chunk"] == Segment(segment_root(root, "0000")).chunks - 1
    assert contents(client, root) == bytes_of(here / "books.knnstore")


def test_documents_are_added_removed_and_compacted_as_on_a_disk(here, url, client, bytes_of, monkeypatch):
    tmp_path = here.parent / "living"
    tmp_path.mkdir()
    monkeypatch.chdir(tmp_path)
    shutil.copytree(here / "books", tmp_path / "books")
    shutil.copytree(here / "books.knnstore", tmp_path / "books.knnstore")
    root = RemotePath(f"{url}.knnstore")
    copied(client, tmp_path / "books.knnstore", root.key)
    gone = sorted(path.name for path in (tmp_path / "books").iterdir())[0]
    (tmp_path / "books" / "new.txt").write_text("A text that was written for this test alone. " * 30)
    for store in (root, tmp_path / "books.knnstore"):
        ingest(options(store=str(store)), Job())
        remove(store, [f"books/{gone}"])
        build_index(Datastore(store), IndexOptions(), Job())
        done = compact(store, CompactOptions(), Job())
        assert done.due
    local, there = bytes_of(tmp_path / "books.knnstore"), contents(client, root)
    assert {name: there[name] for name in local} == local
    # what the states before had stays in the bucket for a day: somebody may be reading it
    assert {name.split("/")[1] for name in there if name.startswith("segments/")} > {
        name.split("/")[1] for name in local if name.startswith("segments/")
    }
    assert done.held == ()


def test_an_ingest_that_is_killed_goes_on_by_the_same_command(here, url, s3, client, bytes_of):
    root = RemotePath(f"{url}.knnstore")
    command = ["ingest", "--corpus", "books/", "--store", str(url), "--workers", "0"]
    command += ["--chunk-rows", str(CHUNK_ROWS), "--context", str(CONTEXT)]

    def written():
        return sum("commits/keys-" in path and method == "PUT" for method, path in s3.paths)

    assert kill_when(lambda: written() >= 2, here, command)
    again = CliRunner().invoke(main, [*command, "--json"])
    assert again.exit_code == 0, again.stderr
    assert json.loads(again.stdout)["tasks_kept"] >= 2
    # it goes on in a copy of its own, since a writer that seems dead may only be frozen
    found = {name.replace("/000010000/", "/0000/"): data for name, data in contents(client, root).items()}
    expected = bytes_of(here / "books.knnstore")
    assert {name: data for name, data in found.items() if name != "knnstore.json"} == {
        name: data for name, data in expected.items() if name.startswith("segments/")
    }
    assert load_manifest(root).segments == ("000010000",)
    assert SECRET not in again.stderr + again.stdout


@contextmanager
def killed_when(cluster, worker, s3, seen):
    """Meanwhile, kill a worker when a request is seen, and start another if it was the last."""
    struck = []

    def strike():
        while not any(seen(*request) for request in list(s3.paths)):
            time.sleep(0.02)
        cluster.kill(worker)
        if worker == len(cluster.workers) - 1:
            cluster.add_worker()
        struck.append(worker)

    s3.forget()
    striking = threading.Thread(target=strike, daemon=True)
    striking.start()
    yield
    striking.join(MOST_SECONDS)
    assert struck


def test_workers_that_die_in_ingest_index_and_search_on_a_bucket_change_nothing(here, url, s3, client, bytes_of):
    root = RemotePath(f"{url}.knnstore")
    cluster = LoopbackCluster(here.parent / f"dask-{url.name}")
    cluster.folder.mkdir()
    cluster.start(workers=3)
    try:
        with cluster_runner(cluster.address, patience=60) as runner:
            with killed_when(cluster, 0, s3, lambda method, path: method == "PUT" and "/keys/c/1/" in path):
                ingest(options(store=str(root)), Job(runner))
            with killed_when(cluster, 1, s3, lambda method, path: method == "PUT" and "/lists/0000/codes/c/0/" in path):
                build_index(Datastore(root), INDEX, Job(runner))
            assert contents(client, root) == bytes_of(here / "books.knnstore")
        with (
            cluster_runner(cluster.address, patience=60) as runner,  # a command has a runner of its own
            killed_when(cluster, 2, s3, lambda method, path: method == "HEAD" and "/lists/0000/keys/c/" in path),
        ):
            there = score(ScoreOptions(k=100), Datastore(root), Job(runner)).to_json()
    finally:
        cluster.stop()
    assert not any(SECRET in log.read_text() for log in cluster.folder.glob("*.log"))
    local = scores_of_disk(here / "books.knnstore")
    for name in ("base", "knn", "tokens"):
        assert there[name] == local[name], name
