"""A function in a process of its own, which may die of it."""

import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any


def in_process(function: Callable[[], Any]) -> Any:
    """What a function gives in a forked process; None if that was killed. Its exceptions are raised here."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        try:
            answer = (True, function())
        except BaseException:
            answer = (False, traceback.format_exc())
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(answer, pipe)
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    os.waitpid(child, 0)
    if not data:
        return None
    good, answer = pickle.loads(data)  # noqa: S301 - from a child of our own
    if not good:
        raise RuntimeError(answer)
    return answer
