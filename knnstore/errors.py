"""The error tree.

::

    KnnstoreError                     everything that knnstore raises on purpose
    ├── UsageError (ValueError)       the command or the call is wrong                        exit code 2
    │   ├── CorpusError               the text can't be read as asked
    │   ├── ModelError                no such language model, or one that can't be used
    │   └── StoreNotFoundError        no such store
    ├── StoreError                    the store on disk doesn't fit the call                  exit code 1
    │   ├── MismatchError             made by another model, tokenizer, layer, setting or version
    │   ├── UnfinishedError           an earlier stage hasn't finished
    │   ├── CorruptStoreError         the data on disk isn't what was written
    │   └── LockedError               another process is writing to the store
    ├── NumericsError (ArithmeticError)  activations that aren't finite or overflow          exit code 1
    └── ResourceError (OSError)       disk, memory or permission                             exit code 1
        ├── DiskFullError             the disk is full or the quota exhausted
        └── OutOfMemoryError          memory was requested and not granted

Every error takes a single message, which gives the name, the value, the limit and the next step. It therefore
survives pickling on its way back from a Dask worker. An error about one parameter also has these as attributes.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from knnstore.wording import option


class KnnstoreError(Exception):
    """Base of every error that knnstore raises on purpose.

    ``field``, ``value``, ``limit`` and ``remedy``: of an error about one parameter, its name, its value, what that must
    not exceed (or the values to choose from), and what to give instead.
    """

    exit_code = 1
    field: str | None = None
    value: object = None
    limit: object = None
    remedy: str = ""

    @classmethod
    def about(
        cls,
        field: str,
        value: object,
        fault: str = "",
        *,
        limit: object = None,
        remedy: str = "",
        quoted: bool = False,
    ) -> Self:
        """Return an error about one parameter, such as ``nlist=0: give a number from 1 to 64``.

        ``fault``: what is wrong with the value, where the remedy doesn't say it, such as ``is too little``. ``quoted``:
        show the value in quotes.
        """
        subject = f"{option(field, value, quoted=quoted)} {fault}".rstrip()
        error = cls(f"{subject}: {remedy}" if remedy else subject)
        error.field, error.value, error.limit, error.remedy = field, value, limit, remedy
        return error


class UsageError(KnnstoreError, ValueError):
    """The command or the call is wrong; the message says how to correct it."""

    exit_code = 2


class CorpusError(UsageError):
    """The text can't be read as asked."""


class ModelError(UsageError):
    """No such language model, or one that can't be used."""


class StoreNotFoundError(UsageError):
    """No such store."""


class StoreError(KnnstoreError):
    """The store on disk doesn't fit the call."""


class MismatchError(StoreError):
    """The store was made with another model, tokenizer, key layer, setting or version of knnstore."""


class MismatchWarning(UserWarning):
    """A mismatch that isn't an error, because the caller allows it or the keys agree nevertheless."""


class UnfinishedError(StoreError):
    """An earlier stage hasn't finished."""


class CorruptStoreError(StoreError):
    """The data on disk isn't what was written."""


class LockedError(StoreError):
    """Another process is writing to the store."""


class NumericsError(KnnstoreError, ArithmeticError):
    """Activations that aren't finite or are too large for the key dtype."""


class ResourceError(KnnstoreError, OSError):
    """Disk, memory or permissions are insufficient."""


class DiskFullError(ResourceError):
    """The disk is full or a quota is exhausted."""


class OutOfMemoryError(ResourceError):
    """The system refused memory to a process or killed it for lack of memory."""


@contextmanager
def located(place: str) -> Iterator[None]:
    """Prefix the message of a ModelError raised within by ``place``, such as the document concerned."""
    try:
        yield
    except ModelError as error:
        raise ModelError(f"{place}: {error}") from error
