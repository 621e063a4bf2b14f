"""The paper's experiments at the scale of one machine, from neighbours that were searched once.

    knnstore score --store STORE --text TEXT --cache 2048 --save-neighbours n.parquet
    python tools/experiment.py NAME --neighbours n.parquet --store STORE [--setting adaptation] [--out FOLDER]

    gains      what store, gate, exact matches and cache are worth, beside the paper's rows
    ablations  perplexity over k and over the temperature
    growth     perplexity as the store grows, from a random part of its keys to all of them
    skipping   the share of searches that is skipped against perplexity
    helps      where the store helps and where it hurts: by word frequency, word class, distance

Each number is for documents that nothing was tuned on: documents are kept out in five parts, each in turn. Ends in a
table, and with ``--out`` in ``NAME.md``, ``NAME.json`` and a figure (matplotlib: ``pip install 'knnstore[figures]'``).
What a run has computed is in ``--out``: the same command again goes on after it.
"""

import argparse
import importlib
import sys
from pathlib import Path

from experiments.material import Material
from experiments.output import Output

from knnstore.errors import KnnstoreError

NAMES = ("gains", "ablations", "growth", "skipping", "helps")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--neighbours", required=True, help="what 'knnstore score --save-neighbours' wrote")
    parser.add_argument("--store", required=True, help="the store that was searched")
    parser.add_argument("--setting", choices=("in-domain", "adaptation"), default="in-domain", help="the paper's row")
    parser.add_argument("--out", type=Path, help="a folder for table, numbers and figure")
    arguments = parser.parse_args()
    output = Output(arguments.name, arguments.setting, arguments.out)
    try:
        material = Material(arguments.neighbours, arguments.store)
        importlib.import_module(f"experiments.{arguments.name}").run(material, output)
    except KnnstoreError as error:
        print(f"Error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
