"""A store of real stages with a tiny LM, made once; the tools that break stores are imported from tools/."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
TOOLS = Path(__file__).resolve().parents[2] / "tools"
sys.path.append(str(TOOLS))


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with ``lm/``, ``books/`` and ``books.knnstore``, ingested and indexed. Read only."""
    from faults.material import make_store

    return make_store(tmp_path_factory.mktemp("made") / "here").parent


@pytest.fixture(scope="session")
def lived(tmp_path_factory):
    """As ``made``, with a store that has a past: an append, removed documents, an exact-match memory. Read only."""
    from faults.material import make_lived_store

    return make_lived_store(tmp_path_factory.mktemp("lived") / "here").parent


@pytest.fixture
def tortured(tmp_path):
    """``tortured(name, cases, seed)``: run a torture, of which nothing may be lost and nothing silent.

    In an interpreter of its own: a process that has run torch with threads can't be forked safely.
    """

    def run(name, cases, seed):
        command = [sys.executable, TOOLS / "torture.py", name, "--n", str(cases), "--seed", str(seed), "--json"]
        done = subprocess.run([*command, "--work", tmp_path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        outcome = json.loads(done.stdout.splitlines()[-1])
        assert [outcome[key] for key in ("tried", "lost", "silent", "told")] == [cases, 0, 0, []]

    return run


@pytest.fixture
def here(made, tmp_path):
    """A copy of that folder, to be damaged."""
    from faults.material import copy_of

    return copy_of(made, tmp_path / "here")


@pytest.fixture
def root(made, tmp_path):
    """A copy of the store alone."""
    shutil.copytree(made / "books.knnstore", tmp_path / "books.knnstore")
    return tmp_path / "books.knnstore"
