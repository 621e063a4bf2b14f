"""Corpus in, store out: tokens first, keys second."""

from knnstore.ingest.job import IngestReport, ingest
from knnstore.ingest.plan import IngestOptions, choose_workers

__all__ = ["IngestOptions", "IngestReport", "choose_workers", "ingest"]
