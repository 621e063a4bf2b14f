"""Detect out-of-memory errors of all libraries and raise one error for them."""

from collections.abc import Iterator
from contextlib import contextmanager

from knnstore.errors import OutOfMemoryError
from knnstore.wording import option

# Messages of PyTorch's CPU allocator, CUDA, oneDNN and Python's threads; other libraries raise MemoryError.
_MESSAGES = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "Cannot allocate memory",
    "could not create a primitive",
    "can't start new thread",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception means that an allocation failed."""
    if isinstance(error, MemoryError | OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(message in str(error) for message in _MESSAGES)


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Turn out-of-memory exceptions into an OutOfMemoryError that names the work, ``what``."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        raise OutOfMemoryError(
            f"not enough memory for {what} ({reason}): run the same command again with fewer {option('workers')} or a "
            f"smaller {option('memory')}, or with more free memory; finished work is kept"
        ) from error
