"""How every command ends: with one message and an exit code for an error, and with advice after Ctrl-C."""

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
from knnstore.wording import speaking

_INTERRUPTED = 130
_TERMINATED = 143


class _Terminated(KeyboardInterrupt):
    """SIGTERM: clean up as for Ctrl-C, including worker processes and the memory shared with them."""


class Group(click.Group):
    """Turn knnstore's errors into one message and an exit code, and Ctrl-C into advice."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """Return the commands in the order in which they were added, which is the order of use."""
        return list(self.commands)

    @speaking(shell=True)
    def invoke(self, context: click.Context) -> Any:
        """Run the parsed command (see click)."""
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
        except OSError as error:  # such as a path that this user must not even stat
            if error.errno is None:  # raised by Python code, not by the system
                raise
            from knnstore.files import explained

            show(f"Error: {explained(error, 'use', Path(os.fsdecode(error.filename or '.')))}", err=True)
            context.exit(1)
        except KeyboardInterrupt as interruption:
            show("\ninterrupted: run the same command again to resume", err=True)
            context.exit(_TERMINATED if isinstance(interruption, _Terminated) else _INTERRUPTED)


@contextmanager
def _terminable() -> Iterator[None]:
    """Raise ``_Terminated`` on SIGTERM, which would otherwise end this process at once."""

    def terminate(*_: Any) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():  # only the main thread may set handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning without its place in the code."""
    show(f"Warning: {message}", err=True)
