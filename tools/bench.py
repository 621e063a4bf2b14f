"""Benchmarks: each measures knnstore and named baselines, alternating in one run, and prints their ratios.

    python tools/bench.py NAME [--quick] [--json] [--rows N] [--queries N] [--rounds N]
                               [--corpus DIR] [--store PATH] [--text PATH] [--figure FILE]

    ingest   tokens/s of computing keys       ÷ bare LM, ÷ a loop that writes memory maps
    keys     bytes per key and perplexity     of key dtype × LM dtype
    trade    bytes per key, recall, perplexity of int8 keys, PCA, PQ and OPQ codes, at two widths
    memory   peak memory as the store grows   ÷ the --memory limit
    index    keys/s of filling the lists      ÷ faiss in RAM, ÷ faiss on disk
    scale    CPU s per key as the store grows ÷ that of a store of a tenth
    search   queries/s and recall             ÷ faiss in RAM, ÷ faiss and re-ranking from a memory map;
                                              a curve over nprobe, in bulk and one by one, warm and cold
    lookup   ms of one query, warm and cold    ÷ faiss on disk, ÷ faiss in RAM
    plan     time, memory, disk of an index   ÷ the estimate of 'index --dry-run'
    overlap  CPU s of finding overlaps         for 10⁹ stored tokens
    score    tokens/s of scoring, end to end  ÷ bare LM
    cluster  tasks/s on 1 to 64 Dask workers   ÷ one worker times their number
    objects  requests, bytes, CPU s of a bucket ÷ a disk
    append   CPU s of adding and removing     ÷ rebuilding the store

``--quick`` takes at most a minute on two idle cores; ``memory``, which starts 14 commands, five. With ``--json`` the
last line is a JSON object.
"""

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

# set before any library with OpenMP is loaded, as in the CLI: threads that spin while waiting take cores from others
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from benchmarks.measuring import Result, Settings

from knnstore.errors import KnnstoreError
from knnstore.sizes import parse_size
from knnstore.wording import speaking

NAMES = (
    *("ingest", "keys", "trade", "memory", "index", "scale"),
    *("search", "lookup", "plan", "overlap", "score"),
    *("append", "cluster", "objects"),
)


@speaking(shell=True)
def main(arguments: Sequence[str] | None = None) -> int:
    parsed = command_line().parse_args(arguments)
    fields = {name: value for name, value in vars(parsed).items() if name in Settings.__slots__}
    settings = Settings(**fields)
    with tempfile.TemporaryDirectory(dir=parsed.work) as folder:
        try:
            result: Result = importlib.import_module(f"benchmarks.{parsed.name}").run(settings, Path(folder))
        except KnnstoreError as error:
            print(f"Error: {error}", file=sys.stderr)
            return error.exit_code
    print(result.text())
    if parsed.json:
        print(result.to_json())
    return 0


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--quick", action="store_true", help="small sizes: a minute; memory: five")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--rows", type=positive, help="tokens in the store, or keys in a synthetic store")
    parser.add_argument("--queries", type=positive, help="number of queries to search")
    parser.add_argument("--rounds", type=positive, help="number of runs of each contestant")
    parser.add_argument("--corpus", type=Path, help="folder of .txt files; default: Python's own documentation")
    parser.add_argument(
        "--store",
        type=Path,
        help="finished store for search, score, scale, overlap; default: of --corpus (search --quick: synthetic)",
    )
    parser.add_argument("--text", type=Path, help="text for search and score; default: the store's held-out text")
    parser.add_argument("--figure", type=Path, help="write a PNG of the results of search or scale")
    parser.add_argument("--model", default="wiki-lm", help="the LM; default: the shipped one")
    parser.add_argument("--memory", type=parse_size, default="4GB", help="memory limit of knnstore; default: 4GB")
    parser.add_argument("--work", type=Path, help="folder for temporary stores; default: the system's")
    return parser


def positive(text: str) -> int:
    """Return a positive integer, for argparse."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text}: give at least 1")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
