"""Fault injection: break a store in every way that a machine, a disk or an attacker could, and check for losses.

    python tools/torture.py NAME [--n N] [--seed S] [--json] [--case CASE]

    crashes  kill, tear, cut the power, fill or break the disk at any of the durable operations of each command, and
             run it again: the result must equal that of an uninterrupted run, byte for byte
    limits   enforce the --memory of every command by a cgroup: it must succeed, or refuse before any work
    repairs  damage each file of stores with an index of every kind, one at a time: repair must end and restore it
    flips    flip single bits in all files of a store: verify must find each, and no search may use it
    frozen   freeze or kill a writer of a store in object storage at any kind of request, while another takes over
    hostile  open, verify and search stores with mutated metadata and arrays: only knnstore's own errors may occur

``--jobs`` distributes the cases over processes. The last line of ``--json`` has ``tried``, ``lost`` and ``silent``; the
exit code is 1 unless the last two are 0.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from faults.outcome import Outcome

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

CASES = {"crashes": 500, "frozen": 200, "repairs": 1500, "flips": 1000, "hostile": 10_000, "limits": 24}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = command_line()
    parsed = parser.parse_args(arguments)
    if parsed.jobs > 1 and parsed.name in ("frozen", "limits"):
        parser.error(f"--jobs {parsed.jobs}: {parsed.name} starts processes itself; leave the option out")
    if parsed.jobs > 1:
        return share_out(parsed)
    if parsed.work:
        parsed.work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=parsed.work) as folder:
        module = importlib.import_module(f"faults.{parsed.name}")
        options = {"part": parsed.part, "stories": parsed.case}
        given = {name: value for name, value in options.items() if value}
        outcome = module.torture(parsed.n or CASES[parsed.name], parsed.seed, Path(folder), **given)
    return tell(outcome, as_json=parsed.json)


def share_out(parsed: argparse.Namespace) -> int:
    """Run the parts of a test in separate processes, and report the combined outcome."""
    line = [sys.executable, __file__, parsed.name, "--n", str(parsed.n or CASES[parsed.name]), "--json"]
    line += ["--seed", str(parsed.seed), *(["--work", parsed.work] if parsed.work else [])]
    parts = [
        subprocess.Popen([*line, "--part", f"{number}/{parsed.jobs}"], stdout=subprocess.PIPE, text=True)
        for number in range(parsed.jobs)
    ]
    outcome = Outcome(parsed.name)
    for part in parts:
        output = part.communicate()[0]
        if part.returncode not in (0, 1) or not output:
            raise RuntimeError(f"{part.args!r} ended with {part.returncode}")
        outcome.add(json.loads(output.splitlines()[-1]))
    return tell(outcome, as_json=parsed.json)


def tell(outcome: Outcome, *, as_json: bool) -> int:
    """Print the outcome; return the exit code."""
    print(outcome.text())
    if as_json:
        print(outcome.to_json())
    return 1 if outcome.lost or outcome.silent else 0


def command_line() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CASES)
    parser.add_argument("--n", type=int, help=f"number of cases; default: {CASES}")
    parser.add_argument("--seed", type=int, default=0, help="random seed; default: 0")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes; default: 1")
    parser.add_argument("--part", type=part_of, help=argparse.SUPPRESS)
    parser.add_argument("--case", action="append", help="for frozen: only this case, as printed; can be repeated")
    parser.add_argument("--work", type=Path, help="folder for temporary stores; default: the system's")
    return parser


def part_of(text: str) -> tuple[int, int]:
    """Parse a part: ``0/2`` is the first of two."""
    number, parts = map(int, text.split("/"))
    return number, parts


if __name__ == "__main__":
    sys.exit(main())
