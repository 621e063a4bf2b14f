"""Common parts of the benchmarks: settings, alternating runs, separate processes, and the table with its ratios."""

import json
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from knnstore.scheduling import available_cores

Contestant = Callable[[], float]
"""Does the work once and returns its rate: units per second of wall time."""


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of the command line; None for a size that the benchmark chooses. ``memory`` in bytes."""

    quick: bool = False
    rows: int | None = None
    queries: int | None = None
    rounds: int | None = None
    corpus: Path | None = None
    store: Path | None = None
    text: Path | None = None
    figure: Path | None = None
    model: str = "wiki-lm"
    memory: int = 4_000_000_000

    def size(self, asked: int | None, *, quick: int, full: int) -> int:
        """Return the requested size, else that for ``--quick`` or a full run."""
        return asked if asked is not None else quick if self.quick else full


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with named columns; the first column names the row."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]

    def lines(self) -> list[str]:
        """Return aligned lines of text, with the first column to the left."""
        cells = [self.columns, *[tuple(map(_cell, row)) for row in self.rows]]
        widths = [max(len(row[column]) for row in cells) for column in range(len(self.columns))]
        return [
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in cells
        ]

    def records(self) -> list[dict[str, Any]]:
        """Return the rows as dictionaries."""
        return [dict(zip(self.columns, row, strict=True)) for row in self.rows]


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a benchmark. ``about``: its sizes; ``rows``: one per contestant, with these ``columns``.

    ``more``: further tables, such as points of a curve; ``notes``: lines on what was left out.
    """

    bench: str
    about: dict[str, Any]
    columns: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    ratios: dict[str, float] = field(default_factory=dict)
    more: tuple[Table, ...] = ()
    notes: tuple[str, ...] = ()

    def text(self) -> str:
        """Return sizes, table and ratios as text."""
        about = ", ".join(f"{name} {_cell(value)}" for name, value in self.about.items())
        width = max(map(len, self.ratios), default=0)
        ratios = [f"{name.ljust(width)}  {value:.3f}" for name, value in self.ratios.items()]
        lines = [f"{self.bench}: {about}", "", *self._table.lines(), "", *ratios]
        for table in self.more:
            lines += ["", table.title, "", *table.lines()]
        return "\n".join([*lines, *(["", *self.notes] if self.notes else [])])

    def to_json(self) -> str:
        """Return the result as a line of JSON."""
        value = {
            "bench": self.bench,
            "ratios": self.ratios,
            "about": self.about,
            "rows": self._table.records(),
            "machine": machine(),
        }
        value |= {table.title: table.records() for table in self.more}
        return json.dumps(value, ensure_ascii=False)

    @property
    def _table(self) -> Table:
        return Table(self.bench, self.columns, self.rows)


def in_turn(contestants: Mapping[str, Contestant], rounds: int) -> dict[str, list[float]]:
    """Return the rates of each contestant, one per round: A B C, A B C, …, so that disturbances affect all equally."""
    rates: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            rates[name].append(contestant())
    return rates


def ratio(rates: Mapping[str, Sequence[float]], one: str, other: str) -> float:
    """Return the median over the rounds of the ratio of two contestants' rates in the same round."""
    return round(statistics.median(a / b for a, b in zip(rates[one], rates[other], strict=True)), 4)


def rate_rows(rates: Mapping[str, Sequence[float]], baseline: str) -> list[tuple[str, float, float, float, float]]:
    """Return a row per contestant: name, median, lowest and highest rate, and median ratio to ``baseline``."""
    return [
        (name, round(statistics.median(of), 1), round(min(of), 1), round(max(of), 1), ratio(rates, name, baseline))
        for name, of in rates.items()
    ]


def rate_of(units: int, work: Callable[[], Any]) -> float:
    """Return the units per second of wall time of ``work()``."""
    started = time.perf_counter()
    work()
    return units / (time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class Measured:
    """The result of a function in a separate process. ``peak_bytes``: peak resident memory above that at the start."""

    value: Any
    peak_bytes: int


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Measured:
    """Call an importable function in a new process, so that the peak is only its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measured, function, arguments).result()


def _measured(function: Callable[..., Any], arguments: tuple[Any, ...]) -> Measured:
    before = _status_bytes("VmRSS")
    value = function(*arguments)
    return Measured(value, _status_bytes("VmHWM") - before)


def _status_bytes(name: str) -> int:
    # not getrusage, whose maximum survives exec and so includes the parent process
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"/proc/self/status has no {name}: memory is measured on Linux only")


def machine() -> dict[str, Any]:
    """Return a description of the machine, and the date."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": models[0].split(":")[1].strip() if models else platform.machine(),
        "cores": available_cores(),
        "load": [round(value, 1) for value in os.getloadavg()],
        "date": datetime.now(UTC).strftime("%F"),
    }


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
