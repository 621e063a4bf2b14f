"""Tuning: which documents, which grid, which setting."""

import numpy as np
import pytest

from knnstore.errors import UsageError
from knnstore.mixing.knn import typical_spread
from knnstore.neighbours import Neighbours
from knnstore.scoring.best_setting import choose
from knnstore.scoring.grid import Grid, make_grid
from knnstore.scoring.options import ScoreOptions
from knnstore.scoring.texts import Texts, split_for_tuning


def texts(*lengths):
    tokens = np.array(lengths, np.int64)
    names = tuple(f"document {number}" for number in range(len(lengths)))
    return Texts(names, np.arange(sum(lengths), dtype=np.uint32), np.cumsum(tokens) - tokens, tokens, 3 * tokens)


def test_every_other_document_is_tuned_on_and_all_others_are_reported():
    tuning, reported = split_for_tuning(texts(5, 7, 2, 4, 9), 100)
    assert tuning.names == ("document 0", "document 2", "document 4")
    assert reported.names == ("document 1", "document 3")
    assert reported.ids.tolist() == [*range(5, 12), *range(14, 18)]
    assert reported.first.tolist() == [0, 7]
    assert reported.bytes.tolist() == [21, 12]


def test_documents_beyond_the_most_tokens_are_reported_instead_of_tuned_on():
    tuning, reported = split_for_tuning(texts(5, 7, 2, 4, 9), 7)
    assert tuning.names == ("document 0", "document 2")
    assert reported.names == ("document 1", "document 3", "document 4")


def test_the_first_document_is_tuned_on_however_long_it_is():
    assert split_for_tuning(texts(50, 7), 10)[0].names == ("document 0",)


def test_a_single_document_is_cut_in_two():
    tuning, reported = split_for_tuning(texts(7), 100)
    assert tuning.ids.tolist() == [0, 1, 2]
    assert reported.ids.tolist() == [3, 4, 5, 6]
    assert int(tuning.bytes[0] + reported.bytes[0]) == 21


def test_a_single_token_cannot_be_tuned_on():
    with pytest.raises(UsageError, match="lambda_="):
        split_for_tuning(texts(1), 100)


def test_temperatures_come_from_the_spread_of_the_distances():
    distances = np.array([[1, 3, np.inf], [2, 2, 12], [0, 0, 4]], np.float32)
    assert typical_spread(distances) == 4
    assert typical_spread(np.zeros((3, 2), np.float32)) == 1
    assert typical_spread(np.full((3, 2), np.inf, np.float32)) == 1
    neighbours = Neighbours(distances, np.zeros((3, 3), np.int64))
    grid = make_grid(ScoreOptions(), 100, neighbours)
    assert grid.ks == (8, 32, 100)
    assert grid.temperatures[0] < 1
    assert grid.temperatures[-1] > 4
    assert 4.0 in grid.temperatures
    wider = make_grid(ScoreOptions(), 100, Neighbours(distances * 10, neighbours.values))
    assert wider.temperatures == pytest.approx([10 * temperature for temperature in grid.temperatures], rel=0.01)


def test_what_is_given_is_not_tuned():
    grid = make_grid(ScoreOptions(k=5, temperature=7.0), 100, None)
    assert grid == Grid((5,), (7.0,))
    assert make_grid(ScoreOptions(k=500, temperature=7.0), 100, None).ks == (100,)


def test_the_setting_of_the_lowest_perplexity_is_chosen():
    rng = np.random.default_rng(0)
    log_lm = np.log(rng.uniform(0.01, 0.3, 200))
    knn = rng.uniform(0, 0.05, (200, 2, 3)).astype(np.float32)
    knn[:, 1, 2] = 0.6  # one setting is much better than the LM
    setting = choose(Grid((4, 8), (1.0, 2.0, 3.0)), log_lm, knn, None)
    assert (setting.k, setting.temperature) == (8, 3.0)
    assert setting.lambda_ > 0.99
    assert choose(Grid((4, 8), (1.0, 2.0, 3.0)), log_lm, knn, 0.2).lambda_ == 0.2
    harmful = np.zeros((200, 1, 1), np.float32)
    assert choose(Grid((4,), (1.0,)), log_lm, harmful, None).lambda_ == 0
