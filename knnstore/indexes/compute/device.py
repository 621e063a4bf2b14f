"""Join on a device, with products and selection in torch, while a thread reads the next tile.

Written for CUDA and checked against NumPy on CPU tensors; the gain on a GPU hasn't been measured.
"""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np
import torch

from knnstore.arrays import Float32, Int64
from knnstore.indexes.compute.protocols import Groups, Numbers, TopK, spare_slots
from knnstore.indexes.compute.stored import Candidates, Probes
from knnstore.indexes.compute.tiles import Tile, offer_tiles, tiles_of
from knnstore.neighbours import ABSENT

_DEVICE_SHARE = 0.6  # of a device's free memory; the rest is for products and copies


class DeviceEngine:
    """``Joins`` on a device."""

    in_threads = False  # the device has a single queue of work

    def __init__(self, device: torch.device) -> None:
        self._device = device

    def scans(self, dtype: np.dtype[Any]) -> bool:
        """Return False: keys are decoded tile by tile."""
        return False

    def memory(self, allowed: int) -> int:
        """Return ``allowed`` or a share of the device's free memory, whichever is smaller."""
        if self._device.type != "cuda":
            return allowed
        free, _ = torch.cuda.mem_get_info(self._device)
        return min(allowed, int(free * _DEVICE_SHARE))

    def top_k(self, thresholds: Float32, k: int, *, values: bool = True, largest_tag: int | None = None) -> TopK:
        """See ``Joins``."""
        return DeviceTopK(thresholds, k, self._device, values=values, tags=largest_tag is not None)


class DeviceTopK:
    """``TopK`` on a device."""

    def __init__(self, thresholds: Float32, k: int, device: torch.device, *, values: bool, tags: bool) -> None:
        self.k = k
        self._device = device
        self._capacity = k + spare_slots(k)
        self._thresholds = torch.from_numpy(thresholds.copy()).to(device)
        shape = (len(thresholds), self._capacity)
        self._distances = torch.full(shape, torch.inf, device=device)
        self._kept = [
            torch.full(shape, ABSENT, dtype=torch.int64, device=device) if kept else None for kept in (values, tags)
        ]
        self._counts = torch.zeros(len(thresholds), dtype=torch.int64, device=device)

    def offer(self, members: Int64, scores: torch.Tensor, offsets: torch.Tensor, numbers: Numbers) -> None:
        """See ``TopK``; ``scores`` and ``offsets`` are on the device."""
        queries = torch.from_numpy(members).to(self._device)
        distances = scores + offsets[:, None]
        below = distances < self._thresholds[queries, None]
        added = below.sum(1)
        full = (self._counts[queries] + added > self._capacity).nonzero()[:, 0]
        if len(full):
            self._compact(queries[full])
            below[full] = distances[full] < self._thresholds[queries[full], None]
            added = below.sum(1)
        slots = self._counts[queries][:, None] + below.cumsum(1) - 1
        lines, keys = below.nonzero(as_tuple=True)
        places = queries[lines], slots[lines, keys]
        self._distances[places] = distances[lines, keys].clamp_(min=0)
        for kept, offered in zip(self._kept, numbers, strict=True):
            if kept is not None and offered is not None:
                kept[places] = torch.from_numpy(offered.astype(np.int64)).to(self._device)[keys]
        self._counts[queries] += added

    def offer_lists(self, groups: Groups, probes: Probes) -> None:
        """See ``TopK``."""
        offer_tiles(self, self._read_ahead(tiles_of(groups, self.k)), probes, self._device)

    def counts(self) -> Int64:
        """See ``TopK``."""
        counts: Int64 = self._counts.clamp(max=self.k).cpu().numpy()
        return counts

    def candidates(self) -> Candidates:
        """See ``TopK``."""
        self._compact(torch.arange(len(self._counts), device=self._device))
        distances = self._distances[:, : self.k].cpu().numpy()
        numbers = [None if kept is None else kept[:, : self.k].cpu().numpy() for kept in self._kept]
        for selected in numbers:
            if selected is not None:
                selected[np.isinf(distances)] = ABSENT
        return Candidates(distances, *numbers)

    def _compact(self, queries: torch.Tensor) -> None:
        """Sort the survivors of some queries, keep k, and lower the thresholds to the k-th distance."""
        ordered, order = self._distances[queries].sort(dim=1, stable=True)
        nearest = order[:, : self.k]
        self._distances[queries, : self.k] = ordered[:, : self.k]
        self._distances[queries, self.k :] = torch.inf
        for kept in self._kept:
            if kept is not None:
                kept[queries, : self.k] = kept[queries].gather(1, nearest)
        self._counts[queries] = self._counts[queries].clamp(max=self.k)
        self._thresholds[queries] = torch.minimum(self._thresholds[queries], ordered[:, self.k - 1])

    def _read_ahead(self, tiles: Iterable[Tile]) -> Iterator[tuple[Tile, torch.Tensor]]:
        """Yield each tile with its keys on the device, while a thread reads the next tile."""

        def fetch(tile: Tile) -> torch.Tensor:
            if self._device.type == "cuda":  # an asynchronous copy needs pinned memory
                return tile.keys().pin_memory().to(self._device, non_blocking=True)
            return tile.keys().to(self._device)

        with ThreadPoolExecutor(1) as pool:
            waiting: tuple[Tile, Future[torch.Tensor]] | None = None
            for tile in tiles:
                following = tile, pool.submit(fetch, tile)
                if waiting is not None:
                    yield waiting[0], waiting[1].result()
                waiting = following
            if waiting is not None:
                yield waiting[0], waiting[1].result()
