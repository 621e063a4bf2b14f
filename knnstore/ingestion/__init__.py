"""Corpus in, store out: tokens first, keys second."""

from knnstore.ingestion.job import IngestReport, ingest
from knnstore.ingestion.plan import IngestOptions, check_memory_first, choose_workers

__all__ = ["IngestOptions", "IngestReport", "check_memory_first", "choose_workers", "ingest"]
