"""What a long job tells meanwhile: sentences, and bars with rate and ETA. Silent unless someone listens."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO

from knnstore.terminal import escaped, fit

# Where nobody watches a bar move, in a log or a notebook that is saved, a line now and then tells as much.
_LINE_SECONDS = 60.0


class Reporter:
    """Says nothing: the library's default."""

    def say(self, text: str) -> None:
        """One line for a person."""

    @contextmanager
    def bar(self, stage: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[float], None]]:
        """A bar of ``total`` units of which ``done`` were done by an earlier run; yields its ``advance(n)``."""
        yield lambda count: None


class TerminalReporter(Reporter):
    """Writes to stderr: a bar where it is a terminal or a notebook, else a line a minute, as logs want it."""

    def __init__(self, line_seconds: float = _LINE_SECONDS) -> None:
        self._line_seconds = line_seconds

    def say(self, text: str) -> None:
        """One line to stderr."""
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
            # a notebook has no columns to ask for, and its cells wrap a line that is too long
            **({"dynamic_ncols": True} if sys.stderr.isatty() else {"ncols": 100}),
            mininterval=0.1 if sys.stderr.isatty() else 1.0,
            smoothing=0.1,
            leave=False,
        ) as meter:
            yield lambda count: (meter.update(count), None)[1]


class LogLines:
    """``advance(n)`` of a bar in a log: writes a line every so many seconds, and none if the stage ends before."""

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
        self._started = self._told = clock()

    def __call__(self, count: float) -> None:
        """``count`` units more are done."""
        self._count += count
        self._made += count
        now = self._clock()
        if now - self._told < self._every or now <= self._started:
            return
        self._told = now
        rate = self._made / (now - self._started)
        left = (self._total - self._count) / rate if rate else 0.0
        print(
            f"{self._stage:<10}{self._count / max(1, self._total):4.0%}  {self._count:,.0f} of {self._total:,} "
            f"{self._unit}, {rate:,.0f} {self._unit}/s, {duration(left)} left",
            file=self._stream or sys.stderr,
            flush=True,
        )


def duration(seconds: float) -> str:
    """``90`` as ``"2 min"``, ``7300`` as ``"2 h 2 min"``: what a person needs to know of a time to wait."""
    if seconds < 60:
        return f"{max(0.0, seconds):.0f} s"
    minutes = round(seconds / 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def in_notebook() -> bool:
    """Whether this is a Jupyter kernel, whose stderr is no terminal and yet shows a bar that moves."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return type(shell).__name__ == "ZMQInteractiveShell"
