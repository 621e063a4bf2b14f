"""The join: an LM and a store on a text, to perplexities."""

from knnstore.score.crossvalidation import TuneReport, tune
from knnstore.score.job import score
from knnstore.score.options import ScoreOptions
from knnstore.score.result import Example, ScoreReport
from knnstore.score.saved import SavedNeighbours

__all__ = [
    "Example",
    "SavedNeighbours",
    "ScoreOptions",
    "ScoreReport",
    "TuneReport",
    "score",
    "tune",
]
