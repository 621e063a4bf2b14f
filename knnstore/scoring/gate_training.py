"""Train a gate on tokens with known probabilities by every source, in seconds on a CPU."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from knnstore.arrays import Bool, Float32, Float64, Int64
from knnstore.mixing.features import FEATURES, LM_FEATURES
from knnstore.mixing.gate import Gate, MemorySource, standardised
from knnstore.mixing.interpolation import best_weights, mix_sources

_UNITS = 32
_BATCH = 1024
_MOST_EPOCHS = 40
_PATIENCE = 6
_RATE, _DECAY = 4e-3, 1e-3
_VALIDATION_SHARE = 0.15
_Tensors = tuple[torch.Tensor, torch.Tensor]
# With fewer tokens than this, a gate is worse than constants.
FEWEST_TOKENS = 500
_UNSEARCHED_EVERY = 6


@dataclass(frozen=True, slots=True, eq=False)
class Lesson:
    """The training data of a gate, n tokens.

    ``features``: float32 (n, F). ``log_lm``: float64 (n,), ln p_LM. ``sources``: float32 (n, S), p by each source.
    ``document``: int64 (n,); whole documents are held out for early stopping. The first ``store_sources`` of the
    sources are from a search.
    """

    features: Float32
    log_lm: Float64
    sources: Float32
    document: Int64
    store_sources: int = 1

    def select(self, rows: Int64 | Bool) -> "Lesson":
        """Return some of the tokens."""
        columns = (self.features[rows], self.log_lm[rows], self.sources[rows], self.document[rows])
        return Lesson(*columns, self.store_sources)


def train_gate(lesson: Lesson, names: tuple[str, ...], sources: tuple[MemorySource, ...], seed: int = 0) -> Gate:
    """Return a gate trained to maximise the probability of the tokens, with early stopping on held-out documents.

    It starts at the best constant weights, so that it only learns when to deviate from them.
    """
    held_out = _validation_rows(lesson.document)
    learned, checked = lesson.select(~held_out), lesson.select(held_out)
    centre, scale = learned.features.mean(axis=0), np.maximum(learned.features.std(axis=0), 1e-3)
    model = _Model(len(names), len(sources) + 1, seed)
    constant, _ = best_weights(learned.log_lm, learned.sources)
    model.start_at(np.concatenate([[max(1 - constant.sum(), 1e-3)], np.maximum(constant, 1e-3)]))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for matrices this small, more threads are slower
    try:
        _descend(model, _tensors(learned, centre, scale), _tensors(checked, centre, scale), seed)
    finally:
        torch.set_num_threads(threads)
    hidden, hidden_bias, output, output_bias = model.arrays()
    return Gate(
        names, sources, _row(centre), _row(scale), _rows(hidden), _row(hidden_bias), _rows(output), _row(output_bias)
    )


def _validation_rows(document: Int64) -> Bool:
    """Return which tokens are held out: bool (n,), a few whole documents by a fixed seed; of fewer than 4, the end."""
    names, counts = np.unique(document, return_counts=True)
    if len(names) < 4:
        last: Bool = np.arange(len(document)) >= len(document) * (1 - _VALIDATION_SHARE)
        return last
    order = np.random.default_rng(0).permutation(len(names))
    enough = int(np.searchsorted(np.cumsum(counts[order]), counts.sum() * _VALIDATION_SHARE)) + 1
    return np.isin(document, names[order[: min(enough, len(names) // 2)]])


class _Model:
    """W₁, b₁, W₂, b₂ of the gate as trainable tensors."""

    def __init__(self, width: int, outputs: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.hidden = torch.randn(width, _UNITS, generator=generator) / width**0.5
        self.hidden_bias = torch.zeros(_UNITS)
        self.output = torch.zeros(_UNITS, outputs)
        self.output_bias = torch.zeros(outputs)
        for tensor in self.parameters():
            tensor.requires_grad_(True)

    def parameters(self) -> list[torch.Tensor]:
        return [self.hidden, self.hidden_bias, self.output, self.output_bias]

    def start_at(self, weights: Float64) -> None:
        with torch.no_grad():
            self.output_bias.copy_(torch.from_numpy(np.log(weights)).float())

    def loss(self, features: torch.Tensor, log_p: torch.Tensor) -> torch.Tensor:
        """Return the mean −ln Σ w_s p_s for features (n, F) and ln p (n, S + 1)."""
        units = torch.tanh(features @ self.hidden + self.hidden_bias)
        log_weights = functional.log_softmax(units @ self.output + self.output_bias, dim=1)
        return -torch.logsumexp(log_weights + log_p, dim=1).mean()

    def arrays(self) -> list[Float32]:
        return [tensor.detach().numpy() for tensor in self.parameters()]


def _tensors(lesson: Lesson, centre: Float32, scale: Float32) -> _Tensors:
    with np.errstate(divide="ignore"):
        log_sources = np.maximum(np.log(lesson.sources), -80)
    log_p = np.concatenate([lesson.log_lm[:, None], log_sources], axis=1).astype(np.float32)
    return torch.from_numpy(standardised(lesson.features, centre, scale)), torch.from_numpy(log_p)


def _descend(model: _Model, learned: _Tensors, checked: _Tensors, seed: int) -> None:
    """Train with Adam until the loss of the held-out tokens stops falling, and keep the weights of its minimum."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=_DECAY)
    generator = torch.Generator().manual_seed(seed)
    best, best_state, waited = float("inf"), [p.detach().clone() for p in model.parameters()], 0
    for epoch in range(_MOST_EPOCHS):
        for group in optimiser.param_groups:
            group["lr"] = _RATE * (1 - epoch / _MOST_EPOCHS)
        for batch in torch.split(torch.randperm(len(learned[0]), generator=generator), _BATCH):
            optimiser.zero_grad()
            torch.autograd.backward(model.loss(learned[0][batch], learned[1][batch]))
            optimiser.step()
        with torch.no_grad():
            loss = float(model.loss(*checked))
        if loss < best - 1e-5:
            best, best_state, waited = loss, [p.detach().clone() for p in model.parameters()], 0
        elif (waited := waited + 1) >= _PATIENCE:
            break
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), best_state, strict=True):
            parameter.copy_(value)


def with_unsearched(lesson: Lesson) -> Lesson:
    """Return the lesson with some tokens repeated as if nothing had been searched for them.

    So the gate learns how to weigh the sources of a token whose search was skipped or had no result.
    """
    repeated = lesson.select(np.arange(0, len(lesson.log_lm), _UNSEARCHED_EVERY))
    features, sources = repeated.features.copy(), repeated.sources.copy()
    features[:, len(LM_FEATURES) : len(FEATURES)] = 0
    sources[:, : lesson.store_sources] = np.exp(repeated.log_lm)[:, None]
    return Lesson(
        np.concatenate([lesson.features, features]),
        np.concatenate([lesson.log_lm, repeated.log_lm]),
        np.concatenate([lesson.sources, sources]),
        np.concatenate([lesson.document, repeated.document]),
        lesson.store_sources,
    )


def gated_log_p(gate: Gate, lesson: Lesson) -> Float64:
    """Return ln p of the lesson's tokens by the gate: float64 (n,)."""
    return mix_sources(lesson.log_lm, lesson.sources, gate.weights(lesson.features)[:, 1:].astype(np.float64))


def _row(values: Float32) -> tuple[float, ...]:
    return tuple(float(f"{value:.6g}") for value in values)


def _rows(values: Float32) -> tuple[tuple[float, ...], ...]:
    return tuple(_row(line) for line in values)
