"""Choose the engine, once per process, and import only that one."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from knnstore.indexes.compute.protocols import Engine, Joins


@lru_cache(maxsize=1)
def host_engine() -> Engine:
    """Return the engine of this host: the compiled kernel if it is available, else the reference."""
    from knnstore.indexes.compute.kernel import load_kernel

    kernel = load_kernel()
    if kernel is None:
        from knnstore.indexes.compute.reference import ReferenceEngine

        return ReferenceEngine()
    from knnstore.indexes.compute.native import NativeEngine

    return NativeEngine(kernel)


def joins_on(device: torch.device | None) -> Joins:
    """Return the engine that joins on ``device``, or on the host if it is None."""
    if device is None:
        return host_engine()
    from knnstore.indexes.compute.device import DeviceEngine

    return DeviceEngine(device)
