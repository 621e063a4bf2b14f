"""Torture: break a store in every way that a machine, a disk or a stranger could, and see that nothing is lost.

    python tools/torture.py NAME [--n N] [--seed S] [--json]

    crashes  kill, tear, cut the power, fill or break the disk at any of the durable operations of each command, and
             run it again: the bytes of a run that nothing interrupted
    limits   hold every command to its --memory by a cgroup: it ends well, or refuses before any work
    flips    flip single bits, over every file of a store: verify finds each, no search answers from one
    hostile  open, verify and search stores with mutated metadata and arrays: errors of ours, and nothing worse

The last line of ``--json`` has ``tried``, ``lost`` and ``silent``; the exit code is 1 unless the last two are 0.
"""

import argparse
import importlib
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

CASES = {"crashes": 500, "flips": 1000, "hostile": 10_000, "limits": 24}


def main(arguments: Sequence[str] | None = None) -> int:
    parsed = command_line().parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=parsed.work) as folder:
        module = importlib.import_module(f"faults.{parsed.name}")
        outcome = module.torture(parsed.n or CASES[parsed.name], parsed.seed, Path(folder))
    print(outcome.text())
    if parsed.json:
        print(outcome.to_json())
    return 1 if outcome.lost or outcome.silent else 0


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CASES)
    parser.add_argument("--n", type=int, help=f"cases; default: {CASES}")
    parser.add_argument("--seed", type=int, default=0, help="of all that is drawn; default: 0")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--work", type=Path, help="where temporary stores go; default: the system's folder")
    return parser


if __name__ == "__main__":
    sys.exit(main())
