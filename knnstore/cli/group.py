"""How every command ends: errors of ours as one sentence and an exit code, Ctrl-C as advice."""

import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from knnstore.cli.output import show
from knnstore.errors import KnnstoreError
from knnstore.outofmemory import memory_errors
from knnstore.terminal import never_fail_on_characters
from knnstore.urls import without_secrets

_INTERRUPTED = 130
_TERMINATED = 143


class _Terminated(KeyboardInterrupt):
    """SIGTERM: everything is closed as for Ctrl-C, worker processes and what Python shares with them too."""


class Group(click.Group):
    """Turns errors of ours into one sentence and an exit code, and Ctrl-C into advice."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """In the order in which they were added, which is that of their use."""
        return list(self.commands)

    def invoke(self, context: click.Context) -> Any:
        """See click: called once a command line is parsed."""
        warnings.showwarning = _show_warning
        never_fail_on_characters(sys.stdout, sys.stderr)
        try:
            with memory_errors("this command"), _terminable():
                return super().invoke(context)
        except click.UsageError as error:
            raise click.UsageError(without_secrets(error.format_message()), error.ctx) from error
        except KnnstoreError as error:
            show(f"Error: {without_secrets(str(error))}", err=True)
            context.exit(error.exit_code)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            context.exit(1)
        except OSError as error:  # of a path that this user may not even look at, say
            if error.errno is None:  # not the system's
                raise
            from knnstore.atomic import explained

            show(f"Error: {explained(error, 'use', Path(os.fsdecode(error.filename or '.')))}", err=True)
            context.exit(1)
        except KeyboardInterrupt as interruption:
            show("\ninterrupted: the same command goes on where this one stopped", err=True)
            context.exit(_TERMINATED if isinstance(interruption, _Terminated) else _INTERRUPTED)


@contextmanager
def _terminable() -> Iterator[None]:
    """Raise ``_Terminated`` on SIGTERM, which would otherwise end this process at once."""

    def terminate(*_: Any) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # only that one may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """A warning is a sentence too, without the place in the code that it comes from."""
    show(f"Warning: {message}", err=True)
