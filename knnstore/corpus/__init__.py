"""Files -> documents -> parts of tokens, in bounded memory and in a fixed order."""

from knnstore.corpus.documents import Document, read_documents
from knnstore.corpus.listing import Listing, Source
from knnstore.corpus.options import ReadCounts, ReadOptions
from knnstore.corpus.parts import Parts, TokenPart, plan_parts
from knnstore.corpus.selection import Selection
from knnstore.corpus.sources import find_pairs, find_sources, fingerprint
from knnstore.corpus.tokens import (
    PART_SCHEMA,
    PairTokens,
    PartSummary,
    Tokenise,
    tokenise_part,
)

__all__ = [
    "PART_SCHEMA",
    "Document",
    "Listing",
    "PairTokens",
    "PartSummary",
    "Parts",
    "ReadCounts",
    "ReadOptions",
    "Selection",
    "Source",
    "TokenPart",
    "Tokenise",
    "find_pairs",
    "find_sources",
    "fingerprint",
    "plan_parts",
    "read_documents",
    "tokenise_part",
]
