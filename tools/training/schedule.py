"""Plan a run, in pure functions of numbers."""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from knnstore.errors import UsageError
from training.recipe import Recipe

DEFAULT_EPOCHS = 4.0  # up to about four passes, repeated text is nearly as useful as new text


@dataclass(frozen=True)
class Plan:
    """Optimiser steps, warm-up steps, and numbers of windows in the corpus, in a step, and in a pass of the model."""

    steps: int
    warmup: int
    windows: int
    batch: int
    micro: int


def plan_run(recipe: Recipe, tokens: int, vocab: int, logits: int) -> Plan:
    """Return the plan for a stream of ``tokens`` tokens, with at most ``logits`` logits per pass (or one window's)."""
    windows = (tokens - 1) // recipe.context
    if windows < 1:
        raise UsageError(f"--corpus has {tokens} tokens, but a window needs {recipe.context + 1}: give more text")
    batch = recipe.batch_tokens // recipe.context
    steps = recipe.steps or math.ceil((recipe.epochs or DEFAULT_EPOCHS) * windows / batch)
    warmup = min(200, steps // 10) if recipe.warmup is None else recipe.warmup
    if warmup >= steps:
        raise UsageError(f"--warmup {warmup}: fewer than the {steps} steps of the run")
    return Plan(steps, warmup, windows, batch, largest_divisor(batch, logits // (recipe.context * vocab)))


def largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of ``number`` up to ``limit``, or 1, so that all passes of a step have one shape."""
    return max(size for size in range(1, number + 1) if number % size == 0 and size <= max(1, limit))


def learning_rate(step: int, steps: int, warmup: int, peak: float) -> float:
    """Return the learning rate: linear to the peak in ``warmup`` steps, then half a cosine down to a tenth of it."""
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * (0.55 + 0.45 * math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


@lru_cache(maxsize=2)
def epoch_order(windows: int, epoch: int, seed: int) -> np.ndarray:
    """Return the order of windows in an epoch: int64 (windows,). RandomState is the same in all versions of NumPy."""
    return np.random.RandomState([seed, epoch]).permutation(windows)


def step_windows(step: int, batch: int, windows: int, seed: int) -> list[int]:
    """Return the windows of one step, which may span the end of an epoch."""
    places = (divmod(place, windows) for place in range(step * batch, (step + 1) * batch))
    return [int(epoch_order(windows, epoch, seed)[place]) for epoch, place in places]
