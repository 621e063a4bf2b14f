#!/usr/bin/env python
"""Run the experiments of the kNN-LM paper at the scale of one machine.

    python tools/experiment.py NAME --out FOLDER [--setting adaptation] …        --help lists the arguments of each

From neighbours saved by ``knnstore score --store STORE --text TEXT --save-neighbours FILE``:

    gains      gains of store, gate, exact matches and cache, beside those of the paper
    ablations  perplexity over k and over the temperature
    growth     perplexity as the store grows, from a random part of its keys to all of them
    skipping   perplexity against the share of skipped searches
    helps      where the store helps and where it hurts: by word frequency, word class, distance
    stores     two stores of one LM: with merged neighbours, or one weight per store

From stores, texts and models:

    searching  probed lists, codes instead of keys, every key: perplexity and queries per second
    pointers   successors of the last step's neighbours instead of a search
    choices    key layer, distance, PCA, int8 and PQ: perplexity and bytes
    training   a store of the text instead of training on it

All numbers are cross-validated: each document is measured with what was tuned on other documents. Prints a table, and
with ``--out`` writes ``NAME.md``, ``NAME.json`` and a figure (matplotlib: ``pip install 'knnstore[figures]'``).
Results are kept in ``--out``, so the same command resumes an interrupted run.
"""

import argparse
import importlib
import sys
from pathlib import Path

from experiments.output import PAPER, Output

from knnstore.errors import KnnstoreError
from knnstore.wording import speaking

NAMES = (
    *("gains", "ablations", "growth", "skipping", "helps", "stores"),
    *("searching", "pointers", "choices", "training"),
)


@speaking(shell=True)
def main(arguments: list[str] | None = None) -> int:
    """Run the experiment that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    modules = {name: importlib.import_module(f"experiments.{name}") for name in NAMES}
    for name, module in modules.items():
        command = commands.add_parser(name, description=module.__doc__)
        command.add_argument("--setting", choices=tuple(PAPER), default="in-domain", help="the paper's row to show")
        command.add_argument("--out", type=Path, help="folder for table, numbers and figure")
        module.add_arguments(command)
    asked = parser.parse_args(arguments)
    try:
        modules[asked.name].run(asked, Output(asked.name, asked.setting, asked.out))
    except KnnstoreError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
