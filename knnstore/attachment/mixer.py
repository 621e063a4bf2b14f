"""What a forward pass of an LM becomes with a store: each position's neighbours, and the mixture's logits."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from knnstore.errors import NumericsError
from knnstore.mixing.evidence import Evidence
from knnstore.mixing.mixture import Mixture
from knnstore.neighbours import Float32, Neighbours

# Numbers of the mixture's logits that are made at once: 256 MB in float32.
_MOST_PROBABILITIES = 2**26


@dataclass(frozen=True, slots=True, eq=False)
class Step:
    """What one forward pass asked of the store: n positions of its batch, in order.

    ``neighbours`` of each. ``log_lm`` and ``log_p``: float32 (n, vocabulary) on the LM's device, ln p of every token by
    the LM alone and by the mixture.
    """

    neighbours: Neighbours
    log_lm: torch.Tensor
    log_p: torch.Tensor


@dataclass(frozen=True, slots=True, eq=False)
class Mixer:
    """Makes the mixture's logits of a forward pass' keys and logits.

    ``search``: the k nearest keys of float32 queries (n, d). ``on_step``: called with what was asked and what became of
    it; None costs nothing. Padding isn't searched for, and keeps the LM's logits.
    """

    search: Callable[[Float32, int], Neighbours]
    mixture: Mixture
    on_step: Callable[[Step], None] | None = None

    def __call__(self, keys: torch.Tensor, logits: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        """Return the mixture's logits, float32 (b, n, V), for keys (b, n, d), logits (b, n, V) and bool (b, n)."""
        if not torch.isfinite(keys[asked]).all():
            raise NumericsError(f"a key isn't finite: the LM overflowed in {logits.dtype}; load it in float32")
        flat_keys, flat_logits, flat_asked = keys.flatten(0, 1), logits.flatten(0, 1), asked.flatten()
        size = max(1, _MOST_PROBABILITIES // logits.shape[-1])
        parts = [
            self._mixed(flat_keys[rows], flat_logits[rows].float(), flat_asked[rows])
            for rows in (slice(begin, begin + size) for begin in range(0, len(flat_keys), size))
        ]
        return torch.cat(parts).reshape(logits.shape) if parts else logits.float()

    def _mixed(self, keys: torch.Tensor, logits: torch.Tensor, asked: torch.Tensor) -> torch.Tensor:
        lines = torch.nonzero(asked)[:, 0]
        neighbours = self.search(np.ascontiguousarray(keys[lines].cpu().numpy()), self.mixture.k)
        lines = lines.to(logits.device)
        mixed = self.mixture.distribution(Evidence(neighbours), logits[lines])
        if self.on_step is not None:
            self.on_step(Step(neighbours, logits[lines].log_softmax(dim=-1), mixed.log_softmax(dim=-1)))
        return logits.index_copy(0, lines, mixed)
