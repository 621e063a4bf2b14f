"""A real Dask cluster on loopback for the tests of a package."""

import sys
from pathlib import Path

import pytest
from loopback import LoopbackCluster

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))  # make_keys


@pytest.fixture(scope="package")
def cluster(tmp_path_factory):
    """Three workers; a test that kills one starts another."""
    started = LoopbackCluster(tmp_path_factory.mktemp("dask")).start(workers=3)
    yield started
    started.stop()


@pytest.fixture
def short_lived(tmp_path):
    """A cluster of one worker, to be destroyed."""
    started = LoopbackCluster(tmp_path).start(workers=1)
    yield started
    started.stop()
