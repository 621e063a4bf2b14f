"""Which tokens are shown as what the store got right."""

from types import SimpleNamespace

import numpy as np

from knnstore.cli.report.words import marked
from knnstore.mixing.mixture import Mixed
from knnstore.scoring.examples import candidates

ALL = np.ones(10, bool)


def block(log_p, top, top_log_p, targets):
    count = len(targets)
    return SimpleNamespace(
        tokens=SimpleNamespace(
            rows=np.arange(count),
            keys=np.zeros((count, 2), np.float32),
            targets=np.array(targets),
            log_p=np.log(log_p),
            top=np.array(top),
            top_log_p=np.log(top_log_p),
        )
    )


def mixed(store_p, weight=0.5):
    store_p = np.array(store_p)
    return Mixed(None, store_p, np.full(len(store_p), weight))


def test_only_tokens_that_the_mixture_surely_puts_first_and_the_lm_does_not_are_shown():
    # right with the store; right already; the store too unsure; the LM's favourite still ahead
    tokens = block([0.01, 0.6, 0.01, 0.01], [7, 5, 7, 7], [0.3, 0.6, 0.3, 0.9], [5, 5, 5, 5])
    found = candidates(tokens, mixed([0.9, 0.9, 0.4, 0.6]), ALL)
    assert [candidate.row for candidate in found] == [0]
    assert found[0].p == 0.5 * 0.9 + 0.5 * 0.01
    assert (found[0].lm_top, found[0].lm_p_top) == (7, np.exp(np.log(0.3)))


def test_the_largest_gain_comes_first():
    tokens = block([0.02, 0.001], [7, 7], [0.1, 0.1], [5, 5])
    found = candidates(tokens, mixed([0.9, 0.9]), ALL)
    assert [candidate.row for candidate in found] == [1, 0]
    assert not candidates(tokens, mixed([0.9, 0.9]), ~ALL)


def test_a_token_is_marked_where_it_stands_and_controls_never_reach_the_terminal():
    assert marked("he whisp", "ered") == "… he whisp▸ered◂"
    assert marked("he went", " out") == "… he went ▸out◂"
    assert "\x1b" not in marked("a\x1b[31m\nb", "\x1b[0m c")
