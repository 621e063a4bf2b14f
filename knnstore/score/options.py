"""What to score, and how."""

import math
from dataclasses import dataclass

from knnstore.corpus.options import ErrorPolicy, ReadOptions
from knnstore.errors import UsageError

DEFAULT_K = 1024


@dataclass(frozen=True, slots=True)
class ScoreOptions:
    """What to score, and how. ``None`` for k, ``lambda_`` or temperature: tuned on half of the documents.

    ``text``: files to score; empty for the documents that the store held out. ``exact`` searches every key;
    ``quantised`` takes the distances of the PQ codes in place of the keys'. ``per_token``: a Parquet file to write.
    ``only`` and ``without``: patterns of documents, or ``10%`` of the keys, that alone are searched or are not.
    ``memory`` in bytes, for the whole process.
    """

    store: str | None = None
    model: str | None = None
    text: tuple[str, ...] = ()
    text_field: str = "text"
    errors: ErrorPolicy = "strict"
    k: int | None = None
    lambda_: float | None = None
    temperature: float | None = None
    nprobe: int | None = None
    exact: bool = False
    quantised: bool = False
    per_token: str | None = None
    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    dtype: str = "auto"
    device: str = "auto"
    memory: int = 4_000_000_000

    def __post_init__(self) -> None:
        if self.k is not None and not 1 <= self.k <= 2**16:
            raise UsageError(f"--k {self.k}: give a number of neighbours from 1 to {2**16}")
        if self.lambda_ is not None and not 0 <= self.lambda_ < 1:
            raise UsageError(f"--lambda {self.lambda_:g}: the store's weight is at least 0 and below 1")
        if self.temperature is not None and not 0 < self.temperature < math.inf:
            raise UsageError(f"--temperature {self.temperature:g}: give a finite number above 0")
        if self.nprobe is not None and self.nprobe < 1:
            raise UsageError(f"--nprobe {self.nprobe}: give at least 1")
        if self.exact and (self.quantised or self.nprobe is not None):
            raise UsageError("--exact searches every key: it goes with neither --quantised nor --nprobe")

    @property
    def tuned(self) -> bool:
        """Whether anything is left to tune."""
        return None in (self.k, self.lambda_, self.temperature)

    @property
    def reading(self) -> ReadOptions:
        """How the texts are read."""
        return ReadOptions(text_field=self.text_field, errors=self.errors)
