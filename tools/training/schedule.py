"""Decisions of a run: numbers in, numbers out."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from knnstore.errors import UsageError
from training.recipe import Recipe

DEFAULT_EPOCHS = 4.0  # up to about four passes, text seen again teaches nearly as much as new text


@dataclass(frozen=True)
class Plan:
    """Optimiser steps, those of them that warm up, windows in the corpus, in a step, and in one pass of the model."""

    steps: int
    warmup: int
    windows: int
    batch: int
    micro: int


def plan_run(recipe: Recipe, tokens: int, vocab: int, logits: int) -> Plan:
    """The plan for a stream of ``tokens`` tokens with at most ``logits`` logits a pass (or one window's)."""
    windows = (tokens - 1) // recipe.context
    if windows < 1:
        raise UsageError(f"--corpus has {tokens} tokens, and one window takes {recipe.context + 1}: give more text")
    batch = recipe.batch_tokens // recipe.context
    steps = recipe.steps or math.ceil((recipe.epochs or DEFAULT_EPOCHS) * windows / batch)
    warmup = min(200, steps // 10) if recipe.warmup is None else recipe.warmup
    if warmup >= steps:
        raise UsageError(f"--warmup {warmup}: fewer than the {steps} steps of the run")
    return Plan(steps, warmup, windows, batch, largest_divisor(batch, logits // (recipe.context * vocab)))


def largest_divisor(number: int, limit: int) -> int:
    """The largest divisor of ``number`` that is at most ``limit``, or 1: so every pass of a step has one shape."""
    return max(size for size in range(1, number + 1) if number % size == 0 and size <= max(1, limit))


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Linear up to the peak in ``warmup`` steps, then half a cosine down to a tenth of it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@lru_cache(maxsize=2)
def epoch_order(windows: int, epoch: int, seed: int) -> np.ndarray:
    """The windows in the order of one epoch: (windows,) int64. RandomState's stream is the same in all of NumPy."""
    return np.random.RandomState([seed, epoch]).permutation(windows)


def step_windows(step: int, batch: int, windows: int, seed: int) -> list[int]:
    """The windows of one step, which may span the end of an epoch."""
    places = (divmod(place, windows) for place in range(step * batch, (step + 1) * batch))
    return [int(epoch_order(windows, epoch, seed)[place]) for epoch, place in places]
