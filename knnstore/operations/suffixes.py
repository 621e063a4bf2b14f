"""``knnstore suffixes``."""

from knnstore.operations.shared import StoreName, open_store, size
from knnstore.progress import Reporter
from knnstore.scheduling import Job
from knnstore.suffix_array.build import SuffixReport, build_suffixes


def suffixes(store: StoreName = None, *, memory: int | str = "4GB", reporter: Reporter | None = None) -> SuffixReport:
    """Build an exact-match memory of a store's tokens, or resume an interrupted build."""
    return build_suffixes(open_store(store), Job(reporter=reporter or Reporter(), memory=size(memory)))
