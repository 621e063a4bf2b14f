"""Corpus in, store out: tokens first, keys second."""

from knnstore.ingest.job import IngestReport, ingest
from knnstore.ingest.plan import IngestOptions, check_memory_first, choose_workers

__all__ = ["IngestOptions", "IngestReport", "check_memory_first", "choose_workers", "ingest"]
