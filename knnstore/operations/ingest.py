"""``knnstore ingest``."""

from dataclasses import replace

from knnstore.corpus.options import ErrorPolicy
from knnstore.datastore.keycodec import KeyDtype
from knnstore.ingestion.job import IngestReport
from knnstore.ingestion.job import ingest as ingest_corpus
from knnstore.ingestion.plan import IngestOptions, check_memory_first, choose_workers
from knnstore.ingestion.tasks import TASK_MODULES
from knnstore.operations.shared import Many, StoreName, options_of, size
from knnstore.progress import Reporter
from knnstore.scheduling import Job, available_cores, find_cluster, open_job, visible_gpus


def ingest(
    corpus: Many = (),
    *,
    task: str = "causal",
    source: Many = (),
    target: Many = (),
    source_field: str = "source",
    target_field: str = "target",
    store: StoreName = None,
    context: int | None = None,
    stride: int | None = None,
    key: str = "ffn-input",
    key_dtype: KeyDtype = "int8",
    holdout: float = 0.01,
    chunk_rows: int | None = None,
    workers: int | None = None,
    special_tokens: bool = False,
    prune: bool = False,
    readmit: bool = False,
    overwrite: bool = False,
    scheduler: str | None = None,
    scheduler_file: str | None = None,
    model: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    allow_mismatch: bool = False,
    include: Many = (),
    exclude: Many = (),
    follow_links: bool = False,
    text_field: str = "text",
    errors: ErrorPolicy = "strict",
    memory: int | str = "4GB",
    reporter: Reporter | None = None,
) -> IngestReport:
    """Run an LM over a corpus and store a key and a value per token; adds only new documents to an existing store."""
    options = replace(options_of(IngestOptions, locals()), store=None if store is None else str(store))
    cluster = find_cluster(scheduler, scheduler_file, workers)
    gpus = visible_gpus() if device in ("auto", "cuda") else ()
    if workers is None and cluster is None:
        workers = len(gpus) or choose_workers(options, size(memory), available_cores())
    job = Job(reporter=reporter or Reporter(), memory=size(memory), workers=workers or 0)
    check_memory_first(options, job)
    with open_job(job, cluster, gpus, TASK_MODULES) as running:
        return ingest_corpus(options, running)
