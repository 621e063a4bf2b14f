"""Another kind of storage, added from outside the package, holds whole stores."""

import uuid

import in_memory  # noqa: F401 - it registers memory://
import pytest

from knnstore.datastore.store import Datastore
from knnstore.files import files_of, path_of
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.ingestion.job import ingest
from knnstore.ingestion.plan import IngestOptions
from knnstore.living.compact import CompactOptions, compact
from knnstore.living.remove import remove
from knnstore.scheduling import Job
from knnstore.scoring.job import score
from knnstore.scoring.options import ScoreOptions
from knnstore.verification.check import verify

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("made_by_a_small_lm")]


def test_a_store_in_another_kind_of_storage_is_that_of_a_disk_through_its_whole_life(
    small_reference, monkeypatch, bytes_of
):
    monkeypatch.chdir(small_reference)
    root = path_of(f"memory://tests/{uuid.uuid4().hex}.knnstore")
    ingest(IngestOptions(corpus=("books/",), chunk_rows=512, context=128, store=str(root)), Job())
    build_index(Datastore(root), IndexOptions(nlist=32, pq_bytes=8), Job())
    files = {path.relative_to(root).as_posix(): path.read_bytes() for path, *_ in files_of(root).entries(root)}
    kept = {name: data for name, data in files.items() if name != ".lock" and "log/" not in name}
    assert kept == bytes_of(small_reference / "books.knnstore")
    local = score(ScoreOptions(k=100), Datastore(small_reference / "books.knnstore")).to_json()
    assert score(ScoreOptions(k=100), Datastore(root)).to_json()["knn"] == local["knn"]
    gone = min(path.name for path in (small_reference / "books").iterdir())
    assert remove(root, [f"books/{gone}"]).documents
    build_index(Datastore(root), IndexOptions(), Job())
    assert compact(root, CompactOptions(), Job()).due
    assert verify(root).intact
    assert Datastore(root).rows < Datastore(small_reference / "books.knnstore").rows
