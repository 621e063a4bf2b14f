"""Figures with machine and date; matplotlib is required before anything is measured."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.measuring import Settings, machine
from knnstore.errors import UsageError


def require_matplotlib(settings: Settings) -> None:
    """Raise UsageError if a figure is requested but can't be drawn."""
    if settings.figure is not None and find_spec("matplotlib") is None:
        raise UsageError("--figure needs matplotlib: pip install 'knnstore[bench]'")


def new_figure(about: str) -> tuple[Any, Any, Any]:
    """Return a figure with a title, and its two plots side by side."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.6), layout="constrained")
    facts = machine()
    figure.suptitle(f"{about}\n{facts['cores']} cores of {facts['cpu']}, {facts['date']}", fontsize=9)
    return figure, *figure.subplots(1, 2)


def save(figure: Any, path: Path) -> None:
    """Write a PNG."""
    figure.savefig(path, dpi=110)
