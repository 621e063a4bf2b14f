"""``knnstore demo``: adapt a Wikipedia LM to Python's documentation, which is on every machine."""

from dataclasses import dataclass, replace
from pathlib import Path

from knnstore.datastore.store import Datastore
from knnstore.demo_corpus import write_corpus
from knnstore.files import storage_errors
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import IndexReport, build_index
from knnstore.ingestion.job import IngestReport, ingest
from knnstore.ingestion.plan import IngestOptions, choose_workers
from knnstore.ingestion.tasks import TASK_MODULES
from knnstore.progress import Reporter
from knnstore.scheduling import Job, available_cores, local_runner
from knnstore.scoring.job import score
from knnstore.scoring.options import ScoreOptions
from knnstore.scoring.result import ScoreReport
from knnstore.sizes import format_size

# About two minutes of work on two cores.
_CORPUS_BYTES = 2_500_000
_HOLDOUT = 0.04


@dataclass(frozen=True, slots=True)
class DemoReport:
    """The reports of the three stages."""

    ingest: IngestReport
    index: IndexReport
    score: ScoreReport


def demo(folder: Path, reporter: Reporter, corpus_bytes: int = _CORPUS_BYTES) -> DemoReport:
    """Write the corpus into ``folder``, make a store of it there, and score held-out documents.

    Resumes an interrupted run.
    """
    corpus, store = folder / "python-docs", folder / "python-docs.knnstore"
    with storage_errors("make", corpus):
        corpus.mkdir(parents=True, exist_ok=True)
    facts = write_corpus(corpus, corpus_bytes)
    reporter.say(
        f"corpus    {format_size(facts.bytes)} of Python's own documentation in {corpus}: language topics, and "
        "docstrings of the standard library and of installed packages"
    )
    options = IngestOptions(corpus=(str(corpus),), store=str(store), model="wiki-lm", holdout=_HOLDOUT)
    job = Job(reporter=reporter)
    workers = choose_workers(options, job.memory, available_cores())
    with local_runner(workers, modules=TASK_MODULES) as runner:
        ingested = ingest(options, replace(job, runner=runner, workers=workers))
    indexed = build_index(Datastore(store), IndexOptions(), job)
    scored = score(ScoreOptions(model="wiki-lm"), Datastore(store), job)
    return DemoReport(ingested, indexed, scored)
