"""Tests of what becomes of a store: a small LM makes their keys."""

import pytest


@pytest.fixture(scope="module", autouse=True)
def made_by(made_by_a_small_lm):
    """The LM that commands and jobs take by themselves."""
