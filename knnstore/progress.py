"""Progress of a long job: messages, and bars with rate and remaining time. Silent by default."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from knnstore.terminal import escaped, fit

# In a log, where a moving bar is useless, a line is printed this often instead.
_LINE_SECONDS = 60.0


class Reporter:
    """Report nothing; the default of the library."""

    def say(self, text: str) -> None:
        """Report one line for people."""

    @contextmanager
    def bar(self, stage: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[float], None]]:
        """Show a bar of ``total`` units, ``done`` of them by an earlier run, and yield its ``advance(n)``."""
        yield lambda count: None


class TerminalReporter(Reporter):
    """Report on stderr: with bars on a terminal or in a notebook, otherwise with one line per minute."""

    def __init__(self, line_seconds: float = _LINE_SECONDS) -> None:
        self._line_seconds = line_seconds

    def say(self, text: str) -> None:
        """Print one line on stderr."""
        print(fit(escaped(text), sys.stderr), file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, stage: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[float], None]]:
        """See Reporter."""
        if not (sys.stderr.isatty() or in_notebook()):
            yield LogLines(stage, total, unit, done, every=self._line_seconds)
            return
        from tqdm import tqdm  # noqa: PLC0415

        with tqdm(
            desc=f"{stage:<10} ",
            bar_format="{desc}{percentage:3.0f} %|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]",
            total=total,
            initial=done,
            unit=f" {unit}",
            unit_scale=True,
            # a notebook reports no width, and its cells wrap lines that are too long
            **({"dynamic_ncols": True} if sys.stderr.isatty() else {"ncols": 100}),
            mininterval=0.1 if sys.stderr.isatty() else 1.0,
            smoothing=0.1,
            leave=False,
        ) as meter:
            yield lambda count: (meter.update(count), None)[1]


class LogLines:
    """The ``advance(n)`` of a bar in a log: prints a line every ``every`` seconds, and none for a shorter stage."""

    def __init__(
        self,
        stage: str,
        total: int,
        unit: str,
        done: int,
        *,
        every: float,
        clock: Callable[[], float] = time.monotonic,
        stream: TextIO | None = None,
    ) -> None:
        self._stage = stage
        self._total = total
        self._unit = unit
        self._count = float(done)
        self._made = 0.0
        self._every = every
        self._clock = clock
        self._stream = stream
        self._started = self._printed = clock()

    def __call__(self, count: float) -> None:
        """Count ``count`` more units."""
        self._count += count
        self._made += count
        now = self._clock()
        if now - self._printed < self._every or now <= self._started:
            return
        self._printed = now
        rate = self._made / (now - self._started)
        left = (self._total - self._count) / rate if rate else 0.0
        print(
            f"{self._stage:<10}{self._count / max(1, self._total):4.0%}  {self._count:,.0f} of {self._total:,} "
            f"{self._unit}, {rate:,.0f} {self._unit}/s, {duration(left)} left",
            file=self._stream or sys.stderr,
            flush=True,
        )


def duration(seconds: float) -> str:
    """Return ``90`` as ``"2 min"`` and ``7300`` as ``"2 h 2 min"``, precise enough for a waiting time."""
    if seconds < 60:
        return f"{max(0.0, seconds):.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def in_notebook() -> bool:
    """Return whether this is a Jupyter kernel, whose stderr isn't a terminal but can show a moving bar."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
