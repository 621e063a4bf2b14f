"""Print requirements that pin the direct dependencies in pyproject.toml to their lower bounds.

    python tools/lowest.py cloud seq2seq > lowest.txt

Includes those of the package and of the named extras. torch is left out: PyPI has no CPU-only builds for Linux, so
``make test-lowest`` installs the one that ``TORCH`` names.
"""

import re
import sys
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path

_BOUND = re.compile(r"(?P<name>[\w.-]+)(?:\[[\w,.-]+\])?>=(?P<version>[\w.]+)$")
_PYPROJECT = Path(__file__).resolve().parent.parent / "pyproject.toml"


def lowest(requirements: Iterable[str]) -> list[str]:
    """Return ``name==version`` of each requirement except torch. Raises ValueError for any but a single lower bound."""
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
