"""Run a function in a separate process, which may die or be stopped."""

import os
import pickle
import traceback
from collections.abc import Callable
from typing import Any


def in_process(function: Callable[[], Any]) -> Any:
    """Return the result of a function in a forked process; None if that was killed. Its exceptions are raised here."""
    return Forked(function).result()


class Forked:
    """A forked process that may be stopped, and whose result is fetched later."""

    def __init__(self, function: Callable[[], Any]) -> None:
        reading, writing = os.pipe()
        self.pid = os.fork()
        if not self.pid:
            os.close(reading)
            try:
                answer = (True, function())
            except BaseException:
                answer = (False, traceback.format_exc())
            with os.fdopen(writing, "wb") as pipe:
                pickle.dump(answer, pipe)
            os._exit(0)
        os.close(writing)
        self._reading = reading
        self._ended = False

    def wait(self) -> bool:
        """Wait until it stops or ends; return whether it is stopped and can be continued."""
        _, status = os.waitpid(self.pid, os.WUNTRACED)
        self._ended = not os.WIFSTOPPED(status)
        return not self._ended

    def result(self) -> Any:
        """Return the result of the function; None if the process was killed. Its exceptions are raised here."""
        with os.fdopen(self._reading, "rb") as pipe:
            data = pipe.read()
        if not self._ended:
            os.waitpid(self.pid, 0)
        if not data:
            return None
        good, answer = pickle.loads(data)  # noqa: S301 - from a child of this process
        if not good:
            raise RuntimeError(answer)
        return answer
