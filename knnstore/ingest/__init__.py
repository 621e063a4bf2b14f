"""Corpus in, store out: tokens first, keys second."""

from knnstore.ingest.job import IngestReport, ingest
from knnstore.ingest.plan import IngestOptions

__all__ = ["IngestOptions", "IngestReport", "ingest"]
