"""Memory instead of training (table 3 of the paper): an LM trained on a tenth of the text with a store of all of it,
against an LM of the same size trained on all of it for the same number of steps.

Both are trained by ``tools/train_lm.py`` with ``--tokenizer``, and measured on the same text in the same windows. Each
step can be resumed.
"""

from argparse import ArgumentParser, Namespace
from functools import cached_property
from pathlib import Path
from typing import Any

import train_lm

import knnstore
from experiments.material import perplexity
from experiments.output import Output
from experiments.scoring import Scores, scores_of, some_texts
from knnstore.corpus import find_sources
from knnstore.datastore.store import Datastore
from knnstore.datastore.stores import Stores
from knnstore.errors import KnnstoreError
from knnstore.lm.forward import KeyModel
from knnstore.lm.loading import load_model
from knnstore.lm.spec import SHIPPED_MODELS, LmSpec
from knnstore.scoring.options import DEFAULT_K, ScoreOptions
from knnstore.scoring.search import StoresSearch

_MEMORY = 2**30


def add_arguments(command: ArgumentParser) -> None:
    command.add_argument("--corpus", nargs="+", required=True, help="the whole text")
    command.add_argument("--text", nargs="+", required=True, help="files to measure on")
    command.add_argument("--work", type=Path, required=True, help="folder for the models and the store")
    command.add_argument("--part", type=int, default=10, help="train on one file in PART")
    command.add_argument("--steps", type=int, default=2000)
    command.add_argument("--layers", type=int, default=4)
    command.add_argument("--width", type=int, default=128)
    command.add_argument("--tokenizer", default=str(SHIPPED_MODELS / "wiki-lm"))
    command.add_argument("--tokens", type=int, default=100_000, help="tokens to measure on, over all documents")
    command.add_argument("--memory", default="4GB")


def run(arguments: Namespace, output: Output) -> None:
    files = [source.path for source in find_sources(arguments.corpus)]
    work = arguments.work
    small, large, store = work / "lm-of-a-part", work / "lm-of-all", work / "all.knnstore"
    _train(arguments, files[:: arguments.part], small)
    _train(arguments, files, large)
    knnstore.ingest(arguments.corpus, store=store, model=str(small), memory=arguments.memory)
    knnstore.index(store, memory=arguments.memory)
    alone, joined = {}, 0.0
    for model in (small, large):
        measured = Measured(arguments, store, model)
        alone[model] = output.computed(model.name, measured.alone)
        if model == small:
            joined = output.computed("joined", measured.joined)
    base = alone[small]
    of_part, of_all = f"LM of 1/{arguments.part} of the text", "LM of all of it, as many steps"
    rows = [
        ["", "perplexity", f"against the {of_part}", "paper", "against its LM"],
        [of_part, f"{base:.2f}", "", "19.59", ""],
        [f"{of_part} + store of all", f"{joined:.2f}", _change(joined, base), "13.73", "-29.9 %"],
        [of_all, f"{alone[large]:.2f}", _change(alone[large], base), "15.17", "-22.6 %"],
    ]
    output.show(
        rows, f"{Datastore(store).rows:,} keys; at most {arguments.tokens:,} tokens of {len(arguments.text)} arguments"
    )

    def draw(axes: Any) -> None:
        names = [row[0] for row in rows[1:]][::-1]
        axes.barh(names, [float(row[1]) for row in rows[1:]][::-1], color="#2a9d6f")
        axes.set_xlabel("perplexity")

    output.figure(draw, (8, 2.4))


def _change(value: float, of: float) -> str:
    return f"{100 * (value / of - 1):+.1f} %"


def _train(arguments: Namespace, files: list[str], out: Path) -> None:
    size = ["--layers", arguments.layers, "--width", arguments.width, "--heads", 4, "--steps", arguments.steps]
    words = ["--corpus", *files, "--out", out, "--tokenizer", arguments.tokenizer, *size]
    if code := train_lm.main([*map(str, words)]):
        raise KnnstoreError(f"train_lm.py ended with {code}: run again to resume")


class Measured:
    """An LM on the text, with and without the store."""

    def __init__(self, arguments: Namespace, store: Path, model: Path) -> None:
        self._arguments, self._store, self._model = arguments, Datastore(store), model

    @cached_property
    def _scores(self) -> Scores:
        recipe = self._store.manifest.key
        model = KeyModel(load_model(LmSpec(str(self._model), recipe.layer)), recipe.layer)
        return scores_of(model, some_texts(self._arguments.text, model, self._arguments.tokens), recipe)

    def alone(self) -> float:
        """Return the perplexity of the LM."""
        return perplexity(self._scores.tokens.log_p)

    def joined(self) -> float:
        """Return the perplexity with the store."""
        search = StoresSearch(Stores([self._store]), ScoreOptions(), _MEMORY)
        return self._scores.kept_out(search(self._scores.tokens.keys, min(DEFAULT_K, self._store.rows)))
