"""knnstore: an explicit memory, on disk, for any causal language model."""

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = [
    "Attachment",
    "Attribution",
    "Generation",
    "Neighbour",
    "Neighbours",
    "Sampling",
    "Setting",
    "Store",
    "attach",
    "compact",
    "export",
    "import_",
    "index",
    "info",
    "ingest",
    "log",
    "merge",
    "open",
    "remove",
    "repair",
    "restore",
    "score",
    "stores",
    "subset",
    "suffixes",
    "tune",
    "verify",
]

if TYPE_CHECKING:
    from knnstore.api import *  # noqa: F403


def __getattr__(name: str) -> object:
    """The interface for programs, imported when it is first used: the command's help needs none of it."""
    if name in __all__:
        from knnstore import api  # noqa: PLC0415 - that is the point

        return getattr(api, name)
    raise AttributeError(f"module 'knnstore' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
