"""Quality against bytes for key dtype × LM dtype of the ingest, by exact search of the same held-out text.

λ, T and k are tuned on one half of the held-out documents, and the perplexity is that of the other half. The queries
and the LM's own probabilities are always float32. Bytes per key are those of the keys in corpus order on disk.
"""

from itertools import product
from pathlib import Path

from benchmarks.material import ingested, text_folder
from benchmarks.measuring import Result, Settings
from knnstore.datastore.store import Datastore
from knnstore.scheduling import Job
from knnstore.scoring.job import score
from knnstore.scoring.options import ScoreOptions
from knnstore.scoring.result import ScoreReport

BASELINE = ("float16", "float32")


def run(settings: Settings, work: Path) -> Result:
    tokens = settings.size(settings.rows, quick=6_000, full=200_000)
    text = text_folder(settings, work, tokens)
    measured: dict[tuple[str, str], tuple[float, ScoreReport]] = {}
    for key_dtype, dtype in product(("float16", "int8"), ("float32", "bfloat16")):
        path = work / f"{key_dtype}-{dtype}"
        store = ingested(settings, text, path, key_dtype=key_dtype, dtype=dtype, holdout=0.1)
        options = ScoreOptions(model=settings.model, exact=True, dtype="float32")
        measured[key_dtype, dtype] = key_bytes(store), score(options, store, Job(memory=settings.memory))
    size, report = measured[BASELINE]
    best = report.knn.perplexity
    rows = []
    for (keys, lm), (of, by) in measured.items():
        worse = round(100 * (by.knn.perplexity / best - 1), 3)
        rows.append((f"{keys} keys, {lm} LM", round(of, 1), round(by.knn.perplexity, 3), worse))
    ratios = {}
    for (keys, lm), (of, by) in measured.items():
        if (keys, lm) != BASELINE:
            ratios[f"perplexity_{keys}_{lm}"] = round(by.knn.perplexity / best, 5)
            ratios[f"bytes_{keys}_{lm}"] = round(of / size, 4)
    about = {
        "keys": store.rows,
        "held-out tokens": report.tokens,
        "LM alone": round(report.base.perplexity, 3),
        "k": report.setting.k,
        "λ": report.setting.lambda_,
        "T": report.setting.temperature,
    }
    return Result("keys", about, ("form", "bytes per key", "perplexity", "% worse"), rows, ratios)


def key_bytes(store: Datastore) -> float:
    """Return the bytes on disk per key in corpus order."""
    folders = [segment.array_path("keys") for segment in store.segments]
    return sum(file.stat().st_size for folder in folders for file in folder.rglob("*") if file.is_file()) / store.rows
