"""The join: an LM and a store on a text, to perplexities."""

from knnstore.score.job import score
from knnstore.score.options import ScoreOptions
from knnstore.score.result import Example, ScoreReport, Setting
from knnstore.score.saved import SavedNeighbours
from knnstore.score.tune import TuneReport, tune

__all__ = [
    "Example",
    "SavedNeighbours",
    "ScoreOptions",
    "ScoreReport",
    "Setting",
    "TuneReport",
    "score",
    "tune",
]
