"""What the tests' workers run: small functions, importable by name there as well."""

import os
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path

from distributed import get_worker

from knnstore.errors import CorpusError
from knnstore.scheduling import kept

HANGS_SECONDS = 300  # a test that fails ends all the same


def double(number):
    return 2 * number


def sleep_and_double(task):
    seconds, number = task
    time.sleep(seconds)
    return 2 * number


def add(shared, number):
    return shared + number


def add_slowly(shared, number):
    time.sleep(0.3)
    return shared + number


def good_then_bad_then_good(folder):
    """How often it was run; the second time fails."""
    attempts = len(list(Path(folder).iterdir())) + 1
    Path(folder, str(attempts)).touch()
    if attempts == 2:
        raise OSError(116, "Stale file handle")
    return attempts


@lru_cache(maxsize=1)
def _what_is_dear():
    return object()


def keep_what_is_dear(_number):
    """How often it was made in this process, with this task, since it was last let go of."""
    kept(_what_is_dear.cache_clear)
    _what_is_dear()
    return _what_is_dear.cache_info().misses, _what_is_dear.cache_info().hits


def process(seconds):
    """The worker's process, and when the task began and ended."""
    begun = time.time()
    time.sleep(seconds)
    return os.getpid(), begun, time.time()


def refuse(number):
    if number == 3:
        raise CorpusError("file 3 is no text")
    return number


def flaky(task):
    """Fails twice, as a disk that is shared by many may, then succeeds."""
    folder, number = task
    attempts = len(list(Path(folder).glob(f"{number}-*")))
    Path(folder, f"{number}-{attempts}-{os.getpid()}").touch()
    if attempts < 2:
        raise OSError(116, "Stale file handle")
    return number


def hang_the_first_time(task):
    """Number 7 hangs until it may go on where it runs first, and returns at once where it runs again."""
    folder, number = task
    if number == 7:
        with suppress(FileExistsError):
            Path(folder, "begun").touch(exist_ok=False)
            return number if _may_go_on(folder) else -1
    return number


def hang_at(task):
    """A task that hangs on the worker at one address until it may go on, and returns at once on any other."""
    folder, host, number = task
    if host in get_worker().address:
        Path(folder, "begun").touch()
        return number if _may_go_on(folder) else -1
    return number


def _may_go_on(folder):
    """Wait for the test's word; False if it never comes."""
    begun = time.monotonic()
    while not Path(folder, "go on").exists():
        if time.monotonic() - begun > HANGS_SECONDS:
            return False
        time.sleep(0.05)
    return True
