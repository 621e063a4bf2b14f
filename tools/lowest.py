"""Requirements that pin the direct dependencies of pyproject.toml to their lower bounds.

    python tools/lowest.py cloud seq2seq > lowest.txt

Those of the package itself, and of the extras that are named. torch is left out: PyPI has no builds for CPUs alone on
Linux, so ``make test-lowest`` installs the one that ``TORCH`` names.
"""

import re
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

_BOUND = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,.-]+\])?>=(?P<version>[\w.]+)$")
_PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def lowest(requirements: Iterable[str]) -> list[str]:
    """``name==version`` of each requirement but torch; raises ValueError for one that has no lower bound alone."""
    pins = []
    for requirement in requirements:
        match = _BOUND.match(requirement)
        if match is None:
            raise ValueError(f"{requirement} in pyproject.toml is not of the form NAME>=VERSION")
        if match["name"] != "torch":
            pins.append(f"{match['name']}=={match['version']}")
    return pins


def main(extras: Sequence[str]) -> None:
    project = tomllib.loads(_PYPROJECT.read_text(encoding="utf-8"))["project"]
    optional = project["optional-dependencies"]
    print("\n".join(lowest([*project["dependencies"], *(line for extra in extras for line in optional[extra])])))


if __name__ == "__main__":
    main(sys.argv[1:])
