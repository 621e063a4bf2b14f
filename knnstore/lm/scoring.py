"""Run windows through an LM for keys and log probabilities of their tokens."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from knnstore.arrays import Int64
from knnstore.lm.forward import InputBatch, KeyModel, even_threads, in_memory, input_batches, scored_positions
from knnstore.lm.sources import SourceBatch, SourceReader
from knnstore.windows import ROWS, Windows

# Maximum number of logits per batch: 256 MB in float32.
_LOGITS = 2**26
# Number of most probable tokens kept per position, for the features of a gate.
_LEADING = 16
_CACHED_LOGITS = 2**19  # float32 numbers: 2 MiB


@dataclass(frozen=True, slots=True, eq=False)
class ScoredTokens:
    """An LM's predictions of n tokens, in the order of their windows.

    ``rows``: int64 (n,). ``keys``: float32 (n, d), used as queries. ``targets``: int64 (n,), the tokens.
    ``log_p``: float64 (n,), ln p_LM of each target. ``top`` and ``top_log_p``: the most probable token and its ln p.
    ``leading`` int64 and ``leading_log_p`` float32 (n, m): the m most probable tokens. ``entropy``: float32 (n,), nats.
    """

    rows: Int64
    keys: Any
    targets: Int64
    log_p: Any
    top: Int64
    top_log_p: Any
    leading: Int64
    leading_log_p: Any
    entropy: Any

    @classmethod
    def joined(cls, parts: Sequence["ScoredTokens"], places: Int64 | slice = slice(None)) -> "ScoredTokens":
        """Return the tokens at ``places`` of the concatenated parts, one column at a time to save memory."""
        columns = ([getattr(part, name) for part in parts] for name in cls.__slots__)
        return cls(*(np.concatenate(column)[places] for column in columns))


def window_scores(
    model: KeyModel, windows: Windows, tokens: Any, batch_tokens: int, sources: SourceReader | None = None
) -> Iterator[ScoredTokens]:
    """Yield keys and ln p of all scored tokens by batch."""
    for batch in batches_to_score(model, windows, tokens, batch_tokens, sources):
        yield from batch_scores(model, batch, tokens)


def batches_to_score(
    model: KeyModel, windows: Windows, tokens: Any, batch_tokens: int, sources: SourceReader | None = None
) -> Iterator[InputBatch]:
    """Yield the batches of ``window_scores``, with at most ``_LOGITS`` logits unless a single window has more."""
    most = max(1, _LOGITS // model.loaded.identity.vocabulary)
    return input_batches(model, windows, tokens, min(batch_tokens, most), sources)


def batch_scores(model: KeyModel, batch: InputBatch, tokens: Any) -> Iterator[ScoredTokens]:
    """Yield keys and ln p of a batch's scored tokens, in several parts if memory is insufficient.

    ``tokens``: as for ``padded_ids``, called only with the scored span of each window.
    """
    for _, scored in in_memory(batch, lambda part: _scored(model, *part, tokens)):
        yield scored


def _scored(model: KeyModel, batch: Windows, ids: Int64, source: SourceBatch | None, tokens: Any) -> ScoredTokens:
    rows, lines, positions = scored_positions(batch)
    # at least one block of rows goes through the head; with fewer, logits would depend on the number of windows
    first = max(0, min(int((batch.length - batch.scored).min()), ids.shape[1] - ROWS))
    with even_threads(*ids.shape):
        keys, logits = model.keys_and_logits(ids, first, source)
    targets = np.concatenate([tokens(*span) for span in scored_spans(batch)]).astype(np.int64)
    columns = _predictions(
        logits, torch.from_numpy(lines), torch.from_numpy(positions - first), torch.from_numpy(targets)
    )
    log_p, leading, leading_log_p, entropy = (column.cpu().numpy() for column in columns)
    return ScoredTokens(
        rows,
        keys[lines, positions - first].numpy(),
        targets,
        log_p.astype(np.float64),
        leading[:, 0],
        leading_log_p[:, 0].astype(np.float64),
        leading,
        leading_log_p,
        entropy,
    )


def _predictions(
    logits: torch.Tensor, lines: torch.Tensor, places: torch.Tensor, targets: torch.Tensor
) -> tuple[torch.Tensor, ...]:
    """Return predictions at n places of logits (lines, places, vocabulary): ln p of the targets, float32 (n,); the
    leading tokens, int64 (n, m), and their ln p, float32 (n, m); the entropy in nats, float32 (n,).

    Works on a few rows at a time, so that they stay in the processor's cache between the steps.
    """
    at_once = len(targets) if logits.device.type != "cpu" else max(1, _CACHED_LOGITS // logits.shape[-1])
    parts = []
    for begin in range(0, len(targets), at_once):
        some = slice(begin, begin + at_once)
        log_p = logits[lines[some], places[some]].float().log_softmax(dim=-1)
        of_targets = log_p.gather(1, targets[some, None].to(log_p.device))[:, 0]
        parts.append((of_targets, *expectations(log_p)))
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def expectations(log_p: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the leading tokens, int64 (n, m), their ln p, float32 (n, m), and nats, float32 (n,), of ln p (n, V)."""
    leading_log_p, leading = log_p.topk(min(_LEADING, log_p.shape[1]), dim=-1)
    # exp(−inf) · −inf counts as 0, for tokens that a model excludes
    entropy = -log_p.exp().mul_(log_p).nan_to_num_(nan=0.0).sum(dim=-1)
    return leading, leading_log_p, entropy


def scored_spans(batch: Windows) -> Iterator[tuple[int, int, int]]:
    """Yield document, begin and end of the tokens that each window scores."""
    for document, end, scored in zip(batch.document, batch.start + batch.length, batch.scored, strict=True):
        yield int(document), int(end - scored), int(end)
