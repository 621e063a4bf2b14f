"""Files -> documents -> parts of tokens, in bounded memory and in an order that never varies."""

from knnstore.corpus.documents import Document, read_documents
from knnstore.corpus.options import ReadCounts, ReadOptions
from knnstore.corpus.sources import Source, Sources, find_sources, fingerprint
from knnstore.corpus.tokens import DOCUMENTS_SCHEMA, PartSummary, Tokenise, TokenPart, plan_parts, tokenise_part

__all__ = [
    "DOCUMENTS_SCHEMA",
    "Document",
    "PartSummary",
    "ReadCounts",
    "ReadOptions",
    "Source",
    "Sources",
    "TokenPart",
    "Tokenise",
    "find_sources",
    "fingerprint",
    "plan_parts",
    "read_documents",
    "tokenise_part",
]
