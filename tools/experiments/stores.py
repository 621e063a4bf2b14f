"""Combine two stores of one LM: the nearest keys of both together, or one weight per store.

Reads two files of neighbours of the same text, one per store.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from experiments.material import Fit, Material, perplexity
from experiments.output import Output
from knnstore.datastore.store import Datastore, store_path
from knnstore.errors import UsageError
from knnstore.mixing.evidence import Evidence
from knnstore.mixing.interpolation import best_weights, mix_sources
from knnstore.neighbours import nearest_of_all
from knnstore.scoring.passes import Block
from knnstore.scoring.saved import SavedNeighbours
from knnstore.suffix_array.search import Suffixes


def add_arguments(command: ArgumentParser) -> None:
    command.add_argument("--neighbours", nargs=2, required=True, metavar=("A", "B"), help="two files of the same text")
    command.add_argument("--store", nargs=2, required=True, metavar=("A", "B"), help="the stores that were searched")


def run(arguments: Namespace, output: Output) -> None:
    files = [SavedNeighbours(path) for path in arguments.neighbours]
    stores = [Datastore(store_path(path)) for path in arguments.store]
    single = [Material(file, store, matches=False) for file, store in zip(files, stores, strict=True)]
    merged = Material(MergedNeighbours(files), stores[0], matches=False)
    names = [file.facts.store for file in files]
    fits: dict[str, Fit | None] = {
        "LM alone": None,
        **{f"LM + {name}": material.constants() for name, material in zip(names, single, strict=True)},
        "merged: the nearest of both": merged.constants(),
        "a weight for each": weight_each(single),
        "merged, weighed by a gate": merged.gate(),
    }
    measured = {
        name: output.computed(name, partial(_measure, merged, fit))  # the documents are the same for all
        for name, fit in fits.items()
    }
    base = measured["LM alone"]
    rows = [["", "perplexity", "against the LM"]]
    rows += [[name, f"{value:.2f}", f"{100 * (value / base - 1):+.1f} %"] for name, value in measured.items()]
    output.show(rows, merged.about)

    def draw(axes: Any) -> None:
        axes.barh(list(measured)[::-1], list(measured.values())[::-1], color="#2a9d6f")
        axes.set_xlabel("perplexity")

    output.figure(draw, (8, 3))


class MergedNeighbours(SavedNeighbours):
    """Several files of neighbours of the same text, merged to the nearest of all. Raises UsageError if texts differ."""

    def __init__(self, files: list[SavedNeighbours]) -> None:
        first, *others = files
        for file in others:
            same = ("model", "layer", "digests", "tokens", "k")
            names = [name for name in same if getattr(file.facts, name) != getattr(first.facts, name)]
            if names:
                raise UsageError(f"{file.path} and {first.path} differ in {', '.join(names)}: score one text alike")
        self._files = files
        self.path = first.path
        rows = sum(file.facts.rows for file in files)
        self.facts = replace(first.facts, store=" + ".join(file.facts.store for file in files), rows=rows, cache=0)

    def __len__(self) -> int:
        return len(self._files[0])

    def blocks(self, suffixes: Suffixes | None = None) -> Iterator[Block]:
        """Yield the blocks of the first file with the nearest neighbours of all files."""
        rows = [file.facts.rows for file in self._files]
        for blocks in zip(*(file.blocks(suffixes) for file in self._files), strict=True):
            neighbours = nearest_of_all([block.evidence.neighbours for block in blocks], rows)
            yield replace(blocks[0], evidence=Evidence(neighbours, blocks[0].evidence.outlook))


def weight_each(single: list[Material]) -> Fit:
    """Return the fit of each store at its own best k and T, with joint weights."""

    def fit(learned: Any, measured: Any) -> Any:
        columns = np.stack([material.best_column(learned) for material in single], axis=1)
        weights, _ = best_weights(single[0].log_lm[learned], columns[learned])
        return mix_sources(single[0].log_lm[measured], columns[measured], weights)

    return fit


def _measure(material: Material, fit: Fit | None) -> float:
    return perplexity(material.log_lm if fit is None else material.kept_out(fit))
