"""The join's survivors on a device: what ``nearest.py`` does, in torch, and tiles that are read ahead in a thread.

Written for CUDA and held to NumPy's answers on CPU tensors; what it gains on a GPU hasn't been measured.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import torch

from knnstore.index.nearest import spare_slots
from knnstore.neighbours import ABSENT, Float32, Int64, Neighbours

_DEVICE_SHARE = 0.6  # of a device's free memory; products and copies take the rest
_EMPTY = -1

Item = TypeVar("Item")


class TensorNearest:
    """``Nearest`` on a device: keeps the k nearest of what is offered to each query. Ties go to what came first."""

    def __init__(self, thresholds: Float32, k: int, device: torch.device, *, tags: bool) -> None:
        self.k = k
        self._capacity = k + spare_slots(k)
        self._thresholds = torch.from_numpy(thresholds.copy()).to(device)
        shape = (len(thresholds), self._capacity)
        self._distances = torch.full(shape, torch.inf, device=device)
        self._values = torch.full(shape, _EMPTY, dtype=torch.int64, device=device)
        self._tags = torch.full(shape, _EMPTY, dtype=torch.int64, device=device) if tags else None
        self._counts = torch.zeros(len(thresholds), dtype=torch.int64, device=device)

    def offer(
        self,
        queries: Int64,
        scores: torch.Tensor,
        offsets: torch.Tensor,
        values: np.ndarray[Any, Any],
        tags: Int64 | None,
    ) -> None:
        """Offer t keys to m queries; ``scores`` (m, t) and ``offsets`` (m,) are on the device. See ``Nearest``."""
        asked = torch.from_numpy(queries).to(scores.device)
        below = scores < (self._thresholds[asked] - offsets)[:, None]
        found = below.sum(1)
        full = (self._counts[asked] + found > self._capacity).nonzero()[:, 0]
        if len(full):
            self._compact(asked[full])
            below[full] = scores[full] < (self._thresholds[asked[full]] - offsets[full])[:, None]
            found = below.sum(1)
        slots = self._counts[asked][:, None] + below.cumsum(1) - 1
        lines, keys = below.nonzero(as_tuple=True)
        places = asked[lines], slots[lines, keys]
        self._distances[places] = (scores[lines, keys] + offsets[lines]).clamp_(min=0)
        self._values[places] = _on(values, scores.device)[keys]
        if self._tags is not None and tags is not None:
            self._tags[places] = _on(tags, scores.device)[keys]
        self._counts[asked] += found

    def found(self) -> Int64:
        """How many each query has, at most k: int64 (n,)."""
        counts: Int64 = self._counts.clamp(max=self.k).cpu().numpy()
        return counts

    def neighbours(self) -> Neighbours:
        """The k nearest of each query, nearest first; ``rows`` are the tags."""
        self._compact(torch.arange(len(self._counts), device=self._counts.device))
        distances, values = self._distances[:, : self.k].cpu().numpy(), self._values[:, : self.k].cpu().numpy()
        tags = None if self._tags is None else self._tags[:, : self.k].cpu().numpy()
        absent = np.isinf(distances)
        values[absent] = ABSENT
        if tags is not None:
            tags[absent] = ABSENT
        return Neighbours(distances, values, tags)

    def _compact(self, queries: torch.Tensor) -> None:
        """Sort some queries' survivors, keep k, and lower the threshold to the k-th."""
        ordered, order = self._distances[queries].sort(dim=1, stable=True)
        kept = order[:, : self.k]
        self._distances[queries, : self.k] = ordered[:, : self.k]
        self._distances[queries, self.k :] = torch.inf
        for array in (self._values, self._tags):
            if array is not None:
                array[queries, : self.k] = array[queries].gather(1, kept)
        self._counts[queries] = self._counts[queries].clamp(max=self.k)
        self._thresholds[queries] = torch.minimum(self._thresholds[queries], ordered[:, self.k - 1])


def read_ahead(items: Iterable[Item], read: Callable[[Item], torch.Tensor], device: torch.device) -> Iterator[Any]:
    """Each item with what ``read`` made of it, on the device: the next is read in a thread while one is worked on."""

    def fetch(item: Item) -> torch.Tensor:
        tensor = read(item)
        if device.type == "cuda":  # copied without waiting, which needs memory that can't be paged out
            return tensor.pin_memory().to(device, non_blocking=True)
        return tensor.to(device)

    with ThreadPoolExecutor(1) as pool:
        waiting: tuple[Item, Future[torch.Tensor]] | None = None
        for item in items:
            following = item, pool.submit(fetch, item)
            if waiting is not None:
                yield waiting[0], waiting[1].result()
            waiting = following
        if waiting is not None:
            yield waiting[0], waiting[1].result()


def device_memory(device: torch.device) -> int:
    """Bytes of the device's memory that a join may plan with."""
    free, _ = torch.cuda.mem_get_info(device)
    return int(free * _DEVICE_SHARE)


def _on(array: np.ndarray[Any, Any], device: torch.device) -> torch.Tensor:
    return torch.from_numpy(array.astype(np.int64)).to(device)
