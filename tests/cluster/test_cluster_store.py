"""A store made on a Dask cluster, whatever befalls its workers, has the bytes of one made in this process."""

import json
import shutil
import threading

import cluster_jobs as jobs
import dask
import pytest
from click.testing import CliRunner
from loopback import wait_until

from knnstore.cli.commands import main
from knnstore.datastore.store import Datastore
from knnstore.indexes.ivfpq import sample
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.ingestion.job import ingest
from knnstore.ingestion.plan import IngestOptions
from knnstore.lm.forward import KeyModel
from knnstore.scheduling import Job, cluster_runner
from knnstore.scoring.job import score
from knnstore.scoring.options import ScoreOptions

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("made_by_a_small_lm")]

CHUNK_ROWS, CONTEXT = 512, 128
INGEST = ("--corpus", "books/", "--chunk-rows", str(CHUNK_ROWS), "--context", str(CONTEXT))
PATIENCE = 4.0


def options(**others):
    return IngestOptions(corpus=("books/",), chunk_rows=CHUNK_ROWS, context=CONTEXT, **others)


@pytest.fixture(scope="module")
def reference(small_reference):
    return small_reference


@pytest.fixture
def folder(reference, tmp_path, monkeypatch):
    shutil.copytree(reference / "books", tmp_path / "books")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sample, "_PART_ROWS", 300)  # so that several workers gather it
    return tmp_path


def keys_done(folder):
    return len(list(folder.glob("books.knnstore/segments/*/commits/keys-*.json")))


def test_a_cluster_leaves_the_bytes_of_one_process_and_scores_as_it(cluster, reference, folder, bytes_of):
    with dask.config.set({"scheduler-address": cluster.address}):
        done = CliRunner().invoke(main, ["ingest", *INGEST, "--json"])
    assert done.exit_code == 0, done.stderr
    assert f"3 workers at {cluster.address}" in done.stderr
    assert json.loads(done.stdout)["tasks_run"] > 3
    with cluster_runner(scheduler_file=str(cluster.scheduler_file), patience=60) as runner:
        build_index(Datastore(folder / "books.knnstore"), IndexOptions(nlist=32, pq_bytes=8), Job(runner))
        assert bytes_of(folder / "books.knnstore") == bytes_of(reference / "books.knnstore")
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(KeyModel, "keys_and_logits", None)  # the workers run the LM, not this process
            there = score(ScoreOptions(k=100), Datastore(folder / "books.knnstore"), Job(runner)).to_json()
    here = score(ScoreOptions(k=100), Datastore(reference / "books.knnstore")).to_json()
    for name in ("base", "knn", "tokens", "search"):
        assert there[name] == here[name], name


def test_workers_that_die_or_freeze_in_the_middle_change_nothing(cluster, reference, folder, bytes_of):
    def strike():
        wait_until(lambda: keys_done(folder) >= 2, "the first keys")
        cluster.kill(0)
        cluster.freeze(1)
        cluster.add_worker()

    striking = threading.Thread(target=strike)
    with cluster_runner(cluster.address, patience=60) as runner:
        runner._patience = runner._roster.patience = PATIENCE
        striking.start()
        report = ingest(options(), Job(runner))
    striking.join()
    cluster.thaw(1)
    assert report.tasks_kept == 0
    made = bytes_of(folder / "books.knnstore")
    with cluster_runner(cluster.address, patience=60) as runner:  # what the frozen one was doing has ended by then
        list(runner.run(jobs.double, range(30)))
    assert bytes_of(folder / "books.knnstore") == made
    keys = {name: data for name, data in bytes_of(reference / "books.knnstore").items() if name.startswith("segments/")}
    assert {name: data for name, data in made.items() if name.startswith("segments/")} == keys
