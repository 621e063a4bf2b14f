"""The LM's pass over a text: here, or its batches shared out to the workers of a runner.

The batches are those that one machine makes, and each worker has the LM's dtype and kind of device that this process
has. So every product meets the same numbers in the same shape, and the answer is that of one machine, on processors of
one kind and with as many threads as this process has. Otherwise the last bits can differ.
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

_TASK_TOKENS = 4096  # padding included: seconds of a CPU, and of a GPU some times what a task costs the scheduler


@dataclass(frozen=True, slots=True, eq=False)
class BatchesTask:
    """Score batches of windows by the LM at ``spec``, which has to be ``identity``; ``targets``: ids by their spans."""

    spec: LmSpec
    identity: ModelIdentity
    batches: tuple[InputBatch, ...]
    targets: dict[tuple[int, int, int], TokenIds]


def score_batches(task: BatchesTask) -> ScoredTokens:
    """What a worker runs. Raises MismatchError if it has another LM."""
    kept(key_model.cache_clear)
    kept(load_model.cache_clear)
    model = key_model(task.spec)
    if replace(model.loaded.identity, name=task.identity.name) != task.identity:
        raise MismatchError(f"{gethostname()} has another LM at {task.spec.model} than the command that scores")
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
    """Keys and ln p of every scored token, in whatever order: by the workers of ``runner``, None for here.

    ``layer``: as it was given to make ``model``. ``tokens`` and ``sources`` read the text.
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
    """Consecutive batches, as few as make up a task."""
    together: list[InputBatch] = []
    for batch in batches:
        together.append(batch)
        if sum(ids.size for _, ids, _ in together) >= _TASK_TOKENS:
            yield tuple(together)
            together = []
    if together:
        yield tuple(together)
