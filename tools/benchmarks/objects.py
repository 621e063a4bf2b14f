"""A store in a bucket compared with one on a disk: requests, transferred bytes and CPU seconds of each stage.

The bucket is moto's server on loopback, in a separate process, so that its CPU seconds aren't counted. The numbers of
requests and bytes are those of any service; the latency of requests isn't.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.material import text_folder
from benchmarks.measuring import Result, Settings
from knnstore.datastore.store import Datastore, store_path
from knnstore.diskspace import bytes_below
from knnstore.files.objects import cache, service
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.ingestion.job import ingest
from knnstore.ingestion.plan import IngestOptions
from knnstore.scheduling import Job
from knnstore.scoring.job import score
from knnstore.scoring.options import ScoreOptions

_CHUNK_ROWS = 1024
_BUCKET = "bucket"
# connections are kept alive between requests, and answers don't wait for an acknowledgement
_MOTO = """
import sys
from werkzeug.serving import WSGIRequestHandler
from moto.server import main

WSGIRequestHandler.protocol_version = "HTTP/1.1"
WSGIRequestHandler.disable_nagle_algorithm = True
main(sys.argv[1:])
"""


def run(settings: Settings, work: Path) -> Result:
    tokens = settings.size(settings.rows, quick=6_000, full=300_000)
    text = text_folder(settings, work, tokens)
    with bucket(work):
        stores = {"disk": str(work / "here"), "bucket": f"s3://{_BUCKET}/there"}
        rows: list[tuple[Any, ...]] = []
        seconds: dict[tuple[str, str], float] = {}
        stages = ("ingest", "index", "score", "score again")
        for stage in stages:
            for place, store in stores.items():
                if stage == "score":
                    forget_cache(work)
                service.forget_traffic()
                seconds[stage, place] = cpu_seconds(stage_of(stage, store, text, settings))
                passed = asdict(service.traffic)
                kinds = [passed[kind] for kind in ("puts", "gets", "heads", "lists", "deletes")]
                moved = (passed["written"] / 1e6, passed["read"] / 1e6)
                rows.append((f"{stage}, {place}", *kinds, *moved, seconds[stage, place]))
        done = Datastore(store_path(stores["bucket"]))
        about = {
            "keys": done.rows,
            "chunks of keys": sum(segment.chunks for segment in done.segments),
            "MB in the bucket": bytes_below(done.root) / 1e6,
        }
    columns = ("stage", "PUT", "GET", "HEAD", "LIST", "DELETE", "MB written", "MB read", "CPU s")
    ratios = {f"{stage}_cpu_vs_disk": seconds[stage, "bucket"] / seconds[stage, "disk"] for stage in stages}
    return Result("objects", about, columns, rows, ratios)


def stage_of(stage: str, store: str, text: Path, settings: Settings) -> Callable[[], Any]:
    """Return a function that runs a stage on a store."""
    root = store_path(store)
    if stage == "ingest":
        options = IngestOptions(corpus=(str(text),), store=store, model=settings.model, chunk_rows=_CHUNK_ROWS)
        return lambda: ingest(options, Job())
    if stage == "index":
        return lambda: build_index(Datastore(root), IndexOptions(nlist=64), Job())
    return lambda: score(ScoreOptions(model=settings.model), Datastore(root))


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Return the CPU seconds of this process during ``work()``."""
    started = time.process_time()
    work()
    return time.process_time() - started


def forget_cache(work: Path) -> None:
    """Empty the cache, as on another machine."""
    for file in (work / "cache").glob("??/*"):
        file.unlink()


@contextmanager
def bucket(work: Path) -> Iterator[None]:
    """Provide an empty bucket of moto's server on loopback, configured by environment variables."""
    from boto3 import client

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-c", _MOTO, "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    variables = {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "AKIDEXAMPLE",
        "AWS_SECRET_ACCESS_KEY": "example",
        "AWS_REGION": "us-east-1",
        cache.FOLDER_VARIABLE: str(work / "cache"),
    }
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        client("s3", region_name="us-east-1").create_bucket(Bucket=_BUCKET)
        service.bucket_of.cache_clear()
        yield
    finally:
        server.kill()
        server.wait()
        service.bucket_of.cache_clear()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
