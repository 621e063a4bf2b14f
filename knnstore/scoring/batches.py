"""Run the LM over a text, in this process or distributed by batches to the workers of a runner.

The batches are those of a single machine, and each worker uses the same dtype and kind of device as this process.
Every product therefore has the same numbers in the same shape, and the results are equal to those of one machine if
the processors are of one kind and use the same number of threads. Otherwise the last bits can differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from socket import gethostname
from typing import TYPE_CHECKING

from knnstore.errors import MismatchError
from knnstore.lm.forward import key_model
from knnstore.lm.loading import load_model
from knnstore.lm.scoring import ScoredTokens, batch_scores, batches_to_score, scored_spans, window_scores
from knnstore.lm.spec import LmSpec
from knnstore.scheduling import kept

if TYPE_CHECKING:
    from knnstore.datastore.manifest import ModelIdentity
    from knnstore.lm.forward import InputBatch, KeyModel
    from knnstore.lm.sources import SourceReader
    from knnstore.scheduling import Runner
    from knnstore.scoring.texts import TokenIds
    from knnstore.windows import Windows

_TASK_TOKENS = 4096  # including padding: seconds on a CPU, and on a GPU several times the scheduler's cost of a task


@dataclass(frozen=True, slots=True, eq=False)
class BatchesTask:
    """Score batches of windows with the LM at ``spec``, which must be ``identity``; ``targets``: ids by span."""

    spec: LmSpec
    identity: ModelIdentity
    batches: tuple[InputBatch, ...]
    targets: dict[tuple[int, int, int], TokenIds]


def score_batches(task: BatchesTask) -> ScoredTokens:
    """Run a task on a worker. Raises MismatchError if it has another LM."""
    kept(key_model.cache_clear)
    kept(load_model.cache_clear)
    model = key_model(task.spec)
    if replace(model.loaded.identity, name=task.identity.name) != task.identity:
        raise MismatchError(f"{gethostname()} has another LM at {task.spec.model} than the scoring command")
    return ScoredTokens.joined(
        [part for batch in task.batches for part in batch_scores(model, batch, lambda *span: task.targets[span])]
    )


def scored_parts(
    model: KeyModel,
    layer: str,
    windows: Windows,
    tokens: Callable[[int, int, int], TokenIds],
    batch_tokens: int,
    *,
    sources: SourceReader | None,
    runner: Runner | None,
) -> Iterator[ScoredTokens]:
    """Yield keys and ln p of all scored tokens, in any order.

    ``layer``: the argument that ``model`` was made with. ``tokens`` and ``sources`` read the text. ``runner``: whose
    workers run the LM; None for this process.
    """
    if runner is None:
        yield from window_scores(model, windows, tokens, batch_tokens, sources)
        return
    loaded = model.loaded
    spec = LmSpec(str(loaded.folder.resolve()), layer, loaded.dtype, loaded.device.type)
    batches = batches_to_score(model, windows, tokens, batch_tokens, sources)
    tasks = (
        BatchesTask(
            spec,
            loaded.identity,
            together,
            {span: tokens(*span) for batch, _, _ in together for span in scored_spans(batch)},
        )
        for together in _grouped(batches)
    )
    yield from runner.run(score_batches, tasks)


def _grouped(batches: Iterable[InputBatch]) -> Iterator[tuple[InputBatch, ...]]:
    """Yield consecutive batches, grouped into tasks of at least ``_TASK_TOKENS`` tokens."""
    together: list[InputBatch] = []
    for batch in batches:
        together.append(batch)
        if sum(ids.size for _, ids, _ in together) >= _TASK_TOKENS:
            yield tuple(together)
            together = []
    if together:
        yield tuple(together)
