"""The join: an LM and a store on a text, to perplexities."""

from knnstore.scoring.crossvalidation import TuneReport, tune
from knnstore.scoring.job import score
from knnstore.scoring.options import ScoreOptions
from knnstore.scoring.result import Example, ScoreReport
from knnstore.scoring.saved import SavedNeighbours

__all__ = [
    "Example",
    "SavedNeighbours",
    "ScoreOptions",
    "ScoreReport",
    "TuneReport",
    "score",
    "tune",
]
