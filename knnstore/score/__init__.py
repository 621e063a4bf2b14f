"""The join: an LM and a store on a text, to perplexities."""

from knnstore.score.job import score
from knnstore.score.options import ScoreOptions
from knnstore.score.result import Example, ScoreReport, Setting

__all__ = ["Example", "ScoreOptions", "ScoreReport", "Setting", "score"]
