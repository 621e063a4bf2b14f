#!/usr/bin/env python
"""The paper's experiments at the scale of one machine.

    python tools/experiment.py NAME --out FOLDER [--setting adaptation] …        --help says what each needs

From neighbours that were searched once, by ``knnstore score --store STORE --text TEXT --save-neighbours FILE``:

    gains      what store, gate, exact matches and cache are worth, beside the paper's rows
    ablations  perplexity over k and over the temperature
    growth     perplexity as the store grows, from a random part of its keys to all of them
    skipping   the share of searches that is skipped against perplexity
    helps      where the store helps and where it hurts: by word frequency, word class, distance
    stores     two stores of one LM: their neighbours merged, or each with a weight of its own

From stores, texts and models:

    searching  lists that are probed, codes in place of keys, every key: perplexity and queries a second
    pointers   successors of the last step's neighbours in place of a search
    choices    key layer, distance, PCA, int8 and PQ: perplexity and bytes
    training   a store of the text in place of training on it

Each number is for documents that nothing was tuned on: documents are kept out in parts, each in turn. Ends in a
table, and with ``--out`` in ``NAME.md``, ``NAME.json`` and a figure (matplotlib: ``pip install 'knnstore[figures]'``).
What a run has computed is in ``--out``: the same command again goes on after it.
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
        command.add_argument("--setting", choices=tuple(PAPER), default="in-domain", help="the paper's row beside")
        command.add_argument("--out", type=Path, help="a folder for table, numbers and figure")
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
