"""Print a table and write Markdown, JSON and a figure; existing numbers aren't computed again."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from knnstore.cli.report.words import table
from knnstore.files import write_atomically, write_json

# Khandelwal et al. 2020, tables 1 and 4: test perplexities of the LM, with the store, with the cache, with both.
PAPER = {
    "in-domain": {"LM alone": 18.65, "LM + store": 16.12, "LM + cache": 18.27, "LM + store + cache": 15.79},
    "adaptation": {"LM alone": 34.84, "LM + store": 20.47},
}


class Output:
    """The results of an experiment."""

    def __init__(self, name: str, setting: str, folder: Path | None) -> None:
        self.name, self.paper, self._folder = name, PAPER[setting], folder
        self._stem = f"{name}-{setting}"
        self._numbers: dict[str, Any] = {}
        if folder is not None:
            folder.mkdir(parents=True, exist_ok=True)
            if self._path("json").is_file():
                self._numbers = json.loads(self._path("json").read_text())

    def computed(self, step: str, compute: Callable[[], Any]) -> Any:
        """Return the JSON value of a step: from an earlier run, or computed and saved."""
        if step not in self._numbers:
            self._numbers[step] = compute()
            if self._folder is not None:
                write_json(self._path("json"), self._numbers)
        return self._numbers[step]

    def show(self, rows: Sequence[Sequence[str]], about: str) -> None:
        """Print a table whose first row is its header, and write it as Markdown."""
        print("\n".join([about, "", *table(rows)]), flush=True)
        if self._folder is not None:
            lines = [f"| {' | '.join(row)} |" for row in rows]
            lines.insert(1, "|---" * len(rows[0]) + "|")
            write_atomically(self._path("md"), "\n".join([about, "", *lines, ""]).encode())

    def figure(self, draw: Callable[[Any], None], size: tuple[float, float] = (6.4, 4.0)) -> None:
        """Save a figure drawn by ``draw`` on matplotlib axes; do nothing without a folder."""
        if self._folder is None:
            return
        try:
            from matplotlib.figure import Figure
        except ImportError:
            print("no figure, because matplotlib is missing: pip install 'knnstore[figures]'")
            return
        figure = Figure(figsize=size, layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(self._path("png"), dpi=110)

    def _path(self, suffix: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{self._stem}.{suffix}"
