"""The error tree.

::

    KnnstoreError                     everything that knnstore raises on purpose
    ├── UsageError (ValueError)       the command or call is wrong; the user mends it        exit code 2
    │   ├── CorpusError               the text can't be read as asked
    │   ├── ModelError                no such language model, or not one that can be used
    │   └── StoreNotFoundError        no such store
    ├── StoreError                    the store on disk isn't what the call needs            exit code 1
    │   ├── MismatchError             made by another model, tokenizer, layer, setting or version
    │   ├── UnfinishedError           a stage before this one hasn't ended
    │   ├── CorruptStoreError         what is on disk isn't what was written
    │   └── LockedError               another process is writing
    ├── NumericsError (ArithmeticError)  activations that aren't finite, or overflow         exit code 1
    └── ResourceError (OSError)       disk, memory or permission                             exit code 1
        ├── DiskFullError             no room, or a quota is used up: make room, and go on
        └── OutOfMemoryError          the system gave less memory than was asked for

Each takes one message, which gives the name, the value, the limit and the next step; so each survives
pickling on its way back from a Dask worker.
"""

from collections.abc import Iterator
from contextlib import contextmanager


class KnnstoreError(Exception):
    """Base of every error that knnstore raises on purpose."""

    exit_code = 1


class UsageError(KnnstoreError, ValueError):
    """The command or the call is wrong, and the message says how to mend it."""

    exit_code = 2


class CorpusError(UsageError):
    """The text can't be read as asked."""


class ModelError(UsageError):
    """No such language model, or not one that can be used."""


class StoreNotFoundError(UsageError):
    """No such store."""


class StoreError(KnnstoreError):
    """The store on disk isn't what the call needs."""


class MismatchError(StoreError):
    """The store was made by another model, tokenizer, key layer or setting, or by another version of knnstore."""


class MismatchWarning(UserWarning):
    """What would be a MismatchError, where the caller has said that it is meant, or the keys have settled it."""


class UnfinishedError(StoreError):
    """A stage before this one hasn't ended."""


class CorruptStoreError(StoreError):
    """What is on disk isn't what was written."""


class LockedError(StoreError):
    """Another process is writing to the store."""


class NumericsError(KnnstoreError, ArithmeticError):
    """Activations that aren't finite, or too large for the key dtype."""


class ResourceError(KnnstoreError, OSError):
    """The disk, the memory or the permissions don't allow it."""


class DiskFullError(ResourceError):
    """There is no room on the disk, or a quota is used up."""


class OutOfMemoryError(ResourceError):
    """The system gave a process less memory than it asked for, or killed it for asking."""


@contextmanager
def located(place: str) -> Iterator[None]:
    """Within, a ModelError names the place in front of its message: the document that it is about."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{place}: {error}") from error
