"""Fixtures that more than one test file needs."""

import ast
import os
import sysconfig
from pathlib import Path

import pytest
from hypothesis import settings

# The arrays here are tiny, and OpenMP threads that spin while they wait for each other make faiss' k-means several
# times slower on a busy machine. Set before torch and faiss are imported, and inherited by commands that tests start.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# How long an example takes says more of the machine than of the code.
settings.register_profile("suite", deadline=None)
settings.load_profile("suite")

REPOSITORY = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def repository() -> Path:
    """The repository's root."""
    return REPOSITORY


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of corpora, models and the reference scorer, which some checkouts have beside the repository."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs {folder}, which is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def tiny_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``books/``: eight documents of some 2,000 characters of English each. Read only: copy before changing it."""
    source = Path(sysconfig.get_path("stdlib")) / "pydoc_data" / "topics.py"
    assignment = next(node for node in ast.parse(source.read_bytes()).body if isinstance(node, ast.Assign))
    topics = ast.literal_eval(assignment.value)
    folder = tmp_path_factory.mktemp("tiny") / "books"
    folder.mkdir()
    for name in sorted(topics, key=lambda name: (-len(topics[name]), name))[:8]:
        (folder / f"{name}.txt").write_text(topics[name][:2000], encoding="utf-8")
    return folder
