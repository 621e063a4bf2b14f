"""What a long job tells meanwhile: sentences, and bars with rate and ETA. Silent unless someone listens."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Reporter:
    """Says nothing: the library's default."""

    def say(self, text: str) -> None:
        """One line for a person."""

    @contextmanager
    def bar(self, stage: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[float], None]]:
        """A bar of ``total`` units of which ``done`` were done by an earlier run; yields its ``advance(n)``."""
        yield lambda count: None


class TerminalReporter(Reporter):
    """Writes to stderr; bars only where stderr is a terminal."""

    def say(self, text: str) -> None:
        """One line to stderr."""
        print(text, file=sys.stderr, flush=True)

    @contextmanager
    def bar(self, stage: str, total: int, unit: str, done: int = 0) -> Iterator[Callable[[float], None]]:
        """See Reporter."""
        from tqdm import tqdm  # noqa: PLC0415

        with tqdm(
            desc=f"{stage:<10} ",
            bar_format="{desc}{percentage:3.0f} %|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_fmt}]",
            total=total,
            initial=done,
            unit=f" {unit}",
            unit_scale=True,
            disable=None,  # where stderr is no terminal
            dynamic_ncols=True,
            smoothing=0.1,
            leave=False,
        ) as meter:
            yield lambda count: (meter.update(count), None)[1]
