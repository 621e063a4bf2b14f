"""Scoring end to end, compared with the bare LM on the same windows, in float32 on the same threads.

tokens/s: scored tokens per second of wall time. knnstore's covers everything that ``score`` does: the LM with its head,
the search, tuning of λ, T and k on one half, the mixture and the examples. The bare LM's covers only the forward pass
with its logits.
"""

from pathlib import Path
from typing import Any

import torch

from benchmarks.material import bare_model, forward, ingested, input_batches, text_folder
from benchmarks.measuring import Contestant, Result, Settings, in_turn, rate_of, rate_rows, ratio
from knnstore.datastore.store import Datastore, store_path
from knnstore.datastore.stores import Stores
from knnstore.indexes.work import IndexOptions
from knnstore.indexing.job import build_index
from knnstore.lm.forward import key_model
from knnstore.lm.spec import LmSpec
from knnstore.scheduling import Job
from knnstore.scoring.job import score
from knnstore.scoring.options import ScoreOptions
from knnstore.scoring.result import ScoreReport
from knnstore.scoring.texts import gather_texts
from knnstore.windows import cut_windows


def run(settings: Settings, work: Path) -> Result:
    rounds = settings.size(settings.rounds, quick=2, full=5)
    store = finished_store(settings, work)
    options = ScoreOptions(model=settings.model, dtype="float32")
    batches, tokens = window_batches(store, options)
    model = bare_model(settings.model, "float32")
    forward(model, batches[:1])
    reports: list[ScoreReport] = []
    contestants: dict[str, Contestant] = {
        "knnstore score": lambda: rate_of(
            tokens, lambda: reports.append(score(options, store, Job(memory=settings.memory)))
        ),
        "bare LM": lambda: rate_of(tokens, lambda: forward(model, batches)),
    }
    rates = in_turn(contestants, rounds)
    last = reports[-1]
    spent = last.seconds.lm + last.seconds.search + last.seconds.mix
    ratios = {
        "score_vs_bare": ratio(rates, "knnstore score", "bare LM"),
        "lm_share_of_score": round(last.seconds.lm / spent, 4),
        "knn_vs_base_perplexity": round(last.knn.perplexity / last.base.perplexity, 4),
    }
    about = {"keys": store.rows, "tokens": tokens, "rounds": rounds, "threads": torch.get_num_threads()}
    about |= {"k": last.setting.k, "nprobe": last.nprobe or 0}
    return Result(
        "score",
        about,
        ("contestant", "tokens/s", "lowest", "highest", "÷ bare LM"),
        rate_rows(rates, "bare LM"),
        ratios,
    )


def finished_store(settings: Settings, work: Path) -> Datastore:
    """Return ``--store``, or an indexed store of the text with a tenth of its documents held out."""
    if settings.store is not None:
        return Datastore(store_path(str(settings.store)))
    tokens = settings.size(settings.rows, quick=16_000, full=400_000)
    store = ingested(settings, text_folder(settings, work, tokens), work / "keys", holdout=0.1)
    build_index(store, IndexOptions(), Job(memory=settings.memory))
    return Datastore(store.root)


def window_batches(store: Datastore, options: ScoreOptions) -> tuple[list[tuple[Any, Any]], int]:
    """Return the batches of windows of ``score``, and the number of tokens that they score."""
    recipe = store.manifest.key
    # loads the LM in the same way as score, before the clock runs
    loaded = key_model(LmSpec(str(options.model), recipe.layer, options.dtype, options.device)).loaded
    _, texts = gather_texts(options, Stores([store]), loaded)
    windows = cut_windows(texts.first, texts.tokens, context=recipe.context, stride=recipe.stride)
    return input_batches(windows, texts.read, loaded.bos), len(texts.ids)
