"""Too little memory, however the libraries say so, and one sentence for it."""

from collections.abc import Iterator
from contextlib import contextmanager

from knnstore.errors import OutOfMemoryError

# The words of PyTorch's CPU allocator, of CUDA, of oneDNN and of Python's threads; all others raise MemoryError.
_SAYS = (
    "can't allocate memory",
    "not enough memory",
    "out of memory",
    "bad_alloc",
    "Cannot allocate memory",
    "could not create a primitive",
    "can't start new thread",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory was asked for and not given."""
    if isinstance(error, MemoryError | OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in _SAYS)


@contextmanager
def memory_errors(what: str) -> Iterator[None]:
    """Turn an exception that means so into an OutOfMemoryError that names what was being done."""
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).strip().split("\n")[0][:160] or type(error).__name__
        raise OutOfMemoryError(
            f"not enough memory for {what} ({reason}): run the same command again with fewer --workers or a smaller "
            "--memory, or where more is free; what is done stays done"
        ) from error
