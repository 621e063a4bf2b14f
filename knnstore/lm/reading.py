"""A forward pass and the text it has read: its own positions, and those of earlier passes in its cache."""

from dataclasses import dataclass
from typing import Any

import torch
from transformers.cache_utils import DynamicCache, DynamicLayer

from knnstore.errors import ModelError


class ReadLayer(DynamicLayer):  # type: ignore[misc]
    """Keys and token ids of the positions in an LM's cache, stored as an additional layer of the cache.

    So they are reordered by beams, repeated, selected, cropped, copied and freed together with the cache. ``owner``:
    number of the attachment that they belong to.
    """

    def __init__(self, owner: int, *, is_sliding: bool) -> None:
        super().__init__()
        self.owner = owner
        self.is_sliding = is_sliding  # as in the cache's first layer, because LMs look for the first layer of a kind


@dataclass(frozen=True, slots=True, eq=False)
class ForwardPass:
    """A pass over m positions of b sequences, of which n return logits.

    ``keys``: float32 (b, m, d). ``logits``: (b, n, V), the LM's own. ``kept``: int64 (n,), the positions among the m
    that the logits belong to. ``mask``: (b, L), 0 at padding, for all positions so far; None without a mask. ``ids``:
    int64 (b, m); None if the LM was given embeddings. ``places``: (b or 1, m), position ids, if given. ``cache``: for
    the next pass; None without a cache. ``owner``: number of the attachment.
    """

    keys: torch.Tensor
    logits: torch.Tensor
    kept: torch.Tensor
    mask: torch.Tensor | None
    ids: torch.Tensor | None
    places: torch.Tensor | None
    cache: Any
    owner: int

    def text(self, length: int) -> torch.Tensor:
        """Return which of the last ``length`` positions hold text rather than padding: bool (b, length)."""
        text = torch.ones((len(self.keys), length), dtype=torch.bool, device=self.keys.device)
        if self.mask is not None:
            known = self.mask[:, -length:].bool()
            text[:, length - known.shape[1] :] = known
        return text

    def read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys, float32 (b, L, d), and ids, int64 (b, L), of all positions so far, including earlier passes.

        Must be called once per pass. Raises ModelError for input or a cache that isn't supported.
        """
        if self.ids is None:
            raise _unsupported("inputs_embeds", "give input_ids")
        cache = getattr(self.cache, "self_attention_cache", self.cache)  # an encoder-decoder model has two
        if cache is None:
            return self.keys, self.ids
        if type(cache) is not DynamicCache:
            raise _unsupported(f"a {type(cache).__name__}", "pass a DynamicCache, or use_cache=False")
        layers = [layer for layer in cache.layers if isinstance(layer, ReadLayer) and layer.owner == self.owner]
        if not layers:
            if cache.get_seq_length() > self.keys.shape[1]:
                raise _unsupported("a cache that was started before the store was attached", "start a new one")
            layers = [ReadLayer(self.owner, is_sliding=getattr(cache.layers[0], "is_sliding", False))]
            cache.layers += layers
        keys, ids = layers[0].update(self.keys[:, None], self.ids[:, None, :, None])
        return keys[:, 0], ids[:, 0, :, 0]


def _unsupported(what: str, remedy: str) -> ModelError:
    return ModelError(
        f"the stored setting looks back at each sequence, which isn't possible with {what}: {remedy}, or give k, "
        "lambda_ and temperature when you attach the store"
    )
