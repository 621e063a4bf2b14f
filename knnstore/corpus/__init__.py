"""Files -> documents -> parts of tokens, in bounded memory and in an order that never varies."""

from knnstore.corpus.documents import Document, read_documents
from knnstore.corpus.options import ReadCounts, ReadOptions
from knnstore.corpus.sources import Source, Sources, find_pairs, find_sources, fingerprint
from knnstore.corpus.tokens import (
    DOCUMENTS_SCHEMA,
    PairTokens,
    PartSummary,
    Tokenise,
    TokenPart,
    plan_parts,
    tokenise_part,
)

__all__ = [
    "DOCUMENTS_SCHEMA",
    "Document",
    "PairTokens",
    "PartSummary",
    "ReadCounts",
    "ReadOptions",
    "Source",
    "Sources",
    "TokenPart",
    "Tokenise",
    "find_pairs",
    "find_sources",
    "fingerprint",
    "plan_parts",
    "read_documents",
    "tokenise_part",
]
