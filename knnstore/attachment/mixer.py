"""Compute the mixture's logits of a forward pass from the evidence at each position."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from knnstore.arrays import Float32, Int64
from knnstore.attachment.sequences import SequenceText, sequence_texts
from knnstore.errors import NumericsError
from knnstore.lm.reading import ForwardPass
from knnstore.lm.scoring import expectations
from knnstore.mixing.cache import stacked
from knnstore.mixing.evidence import Evidence
from knnstore.mixing.features import Outlook
from knnstore.mixing.mixture import Mixture
from knnstore.neighbours import Neighbours
from knnstore.suffix_array.contexts import DEPTH
from knnstore.suffix_array.search import Suffixes

# Maximum number of logits computed at once: 256 MB in float32.
_MOST_PROBABILITIES = 2**26


@dataclass(frozen=True, slots=True, eq=False)
class MixedStep:
    """The mixture at n positions of the batch of a forward pass, in order.

    ``evidence``: the inputs of the mixture. ``log_lm`` and ``log_p``: float32 (n, vocabulary) on the LM's device, ln p
    of every token by the LM and by the mixture.
    """

    evidence: Evidence
    log_lm: torch.Tensor
    log_p: torch.Tensor

    @property
    def neighbours(self) -> Neighbours:
        """Return the neighbours of each position."""
        return self.evidence.neighbours


@dataclass(frozen=True, slots=True, eq=False)
class Mixer:
    """Computes the mixture's logits from the keys and logits of a forward pass.

    ``search``: returns the k nearest keys of float32 queries (n, d). ``suffixes``: the store's exact-match memory, if
    the mixture uses it. ``bos``: the token before a document, which isn't part of its contexts. ``on_step``: called
    with each step; None avoids its cost. Padding isn't searched for and keeps the LM's logits.
    """

    search: Callable[[Float32, int], Neighbours]
    mixture: Mixture
    suffixes: Suffixes | None = None
    bos: int = -1
    on_step: Callable[[MixedStep], None] | None = None

    def __call__(self, forward: ForwardPass) -> torch.Tensor:
        """Return the mixture's logits, float32 (b, n, V)."""
        logits, length = forward.logits, forward.keys.shape[1]
        asked = forward.text(length)[:, forward.kept]  # (b, n)
        keys = forward.keys[:, forward.kept]  # (b, n, d)
        if not torch.isfinite(keys[asked]).all():
            raise NumericsError(f"a key isn't finite: the LM overflowed in {logits.dtype}; load it in float32")
        looks_back = self.mixture.setting.cache or self.suffixes is not None
        texts = sequence_texts(forward, self.mixture.setting.cache) if looks_back else []
        places = torch.nonzero(asked.flatten())[:, 0]  # in the flattened (b, n)
        flat_keys, flat_logits = keys.flatten(0, 1), logits.float().flatten(0, 1)  # (b · n, d), (b · n, V)
        size = max(1, _MOST_PROBABILITIES // logits.shape[-1])
        parts = [
            self._mixed(flat_keys[some], flat_logits[some.to(logits.device)], texts, some.cpu().numpy())
            for some in (places[begin : begin + size] for begin in range(0, max(1, len(places)), size))
        ]
        return flat_logits.index_copy(0, places.to(logits.device), torch.cat(parts)).reshape(logits.shape)

    def _mixed(
        self, keys: torch.Tensor, logits: torch.Tensor, texts: list[SequenceText], places: Int64
    ) -> torch.Tensor:
        neighbours = self.search(np.ascontiguousarray(keys.cpu().numpy()), self.mixture.k)
        evidence = self._evidence(neighbours, logits.detach(), texts, places)
        mixed = self.mixture.distribution(evidence, logits)
        if self.on_step is not None:
            self.on_step(MixedStep(evidence, logits.log_softmax(dim=-1), mixed.log_softmax(dim=-1)))
        return mixed

    def _evidence(
        self, neighbours: Neighbours, logits: torch.Tensor, texts: list[SequenceText], places: Int64
    ) -> Evidence:
        """Return the evidence at some ``places`` of the flattened kept positions (b, n)."""
        outlook = pairs = matches = None
        if self.mixture.gate is not None:
            leading, leading_log_p, entropy = (part.cpu().numpy() for part in expectations(logits.log_softmax(dim=-1)))
            outlook = Outlook(entropy, leading, leading_log_p)
        lines, columns = np.divmod(places, len(texts[0].kept)) if texts else (places, places)
        each = [(texts[line], columns[lines == line]) for line in np.unique(lines)] if texts else []
        if size := self.mixture.setting.cache:
            pairs = stacked([text.pairs(some, size) for text, some in each])
        if self.suffixes is not None:
            nothing = self.suffixes.packing.nothing
            contexts = [text.contexts(some, self.bos, nothing) for text, some in each]
            matches = self.suffixes.matches(np.concatenate(contexts or [np.empty((0, DEPTH), np.int64)]))
        return Evidence(neighbours, outlook, matches=matches, pairs=pairs)
