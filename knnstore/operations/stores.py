"""``knnstore stores``."""

from pathlib import Path

from knnstore.description import StoreSummary, list_stores


def stores(folder: str | Path = ".") -> list[StoreSummary]:
    """List the stores in a folder."""
    return list_stores(Path(folder))
